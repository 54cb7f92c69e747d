//! What does the allocator keep? The C library has a heap for each few threads, and what one of them has freed serves no
//! other: a daemon with many threads that come and go grows for days without having lost anything.

/// Lets all threads share at most `most` heaps. Fewer are slower where many threads allocate at once.
///
/// To be called before there are threads. Where the C library is another one nothing happens.
pub fn share(most: u16) {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call only sets a number; it takes no pointer.
    let _accepted = unsafe { libc::mallopt(libc::M_ARENA_MAX, libc::c_int::from(most)) };
    #[cfg(not(target_env = "gnu"))]
    let _ = most;
}

/// Gives memory that is free back to the system. Threads that allocate meanwhile wait for some milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointer, and moves nothing that is in use.
    let _given = unsafe { libc::malloc_trim(0) };
}
