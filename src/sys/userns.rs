//! TODO-userns
