//! Takes chance out of a process: what the kernel would draw for a seeded thread follows from its seed.
//!
//! The standard library draws the keys of its hash maps with libc's `getrandom`, and tokio takes from such keys, and from a count
//! of its runtimes in this process, the order in which a `select!` looks at its branches. The symbol defined here comes before
//! libc's (the standard library asks for it weakly, for such a purpose), so a seed gives the same history in every process that
//! has run nothing before it. The daemon itself stays as it is: whatever its loop asks after the store it asks in an order that a seed
//! stands for.

use std::ffi::{c_uint, c_void};

use nix::libc;

use crate::store::seeded;

/// What libc's function of this name does, except on a thread that was given a seed.
///
/// # Safety
/// As for libc's: `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let mut written = 0;
    while let Some([byte]) = (written < length).then(seeded::bytes).flatten() {
        // SAFETY: there are fewer than `length` bytes before it.
        unsafe { buffer.cast::<u8>().add(written).write(byte) };
        written += 1;
    }
    if written > 0 || length == 0 {
        return isize::try_from(written).unwrap_or(isize::MAX);
    }
    // SAFETY: the caller's promise is the kernel's condition.
    let drawn = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
    isize::try_from(drawn).unwrap_or(-1)
}
