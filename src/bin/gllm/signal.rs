//! Ctrl-C and SIGTERM: asked for once, generation stops after the step that is running; a second
//! time, the process ends at once, and what it was writing is removed.

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// The path of a file that is not to outlive the process, or null.
static UNFINISHED: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

extern "C" fn handler(signal: libc::c_int) {
    if CAUGHT.swap(signal, Ordering::Relaxed) != 0 {
        let path = UNFINISHED.load(Ordering::Acquire);
        // SAFETY: `unlink` and `_exit` may be called from a signal handler; the path is a C string
        // that is never freed.
        unsafe {
            if !path.is_null() {
                libc::unlink(path);
            }
            libc::_exit(128 + signal)
        };
    }
}

/// Catches SIGINT and SIGTERM from now on.
pub fn catch() {
    let handler = handler as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler touches one atomic and nothing else.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Catches what else would end the process in the middle of a file: a terminal that is closed, and
/// a file that grows beyond what the user may write, which is an error of writing then.
pub fn catch_for_files() {
    catch();
    let handler = handler as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: as above; a signal that the process was started to ignore stays ignored.
    unsafe {
        if libc::signal(libc::SIGHUP, handler) == libc::SIG_IGN {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
        }
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// The signal that was caught, if one was.
pub fn caught() -> Option<i32> {
    match CAUGHT.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

/// Removes this file, from now on, when the process ends at once; no file any more with `None`.
pub fn remove_at_end(path: Option<&Path>) {
    let path = path.and_then(|p| CString::new(p.as_os_str().as_bytes()).ok());
    // Not freed: a handler may be reading it. There is one for a process.
    UNFINISHED.store(path.map_or(ptr::null_mut(), CString::into_raw), Ordering::Release);
}

/// Does what must not be cut in two: signals that this thread would catch wait for its end. There
/// must be no other thread that could.
pub fn undisturbed<T>(what: impl FnOnce() -> T) -> T {
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the sets are this function's own, and made before they are read; where blocking
    // fails, which it does not with these arguments, nothing is undone.
    unsafe {
        let mut caught = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(caught.as_mut_ptr());
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(caught.as_mut_ptr(), signal);
        }
        let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, caught.as_ptr(), before.as_mut_ptr());
        let result = what();
        if blocked == 0 {
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        }
        result
    }
}
