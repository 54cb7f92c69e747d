//! Sequences that went wrong once, shortened.
