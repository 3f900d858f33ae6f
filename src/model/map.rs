//! A file as memory, which stays memory whatever becomes of the file.
//!
//! When a mapped file shrinks, touching a page that lies past its new end raises SIGBUS, which
//! ends the process. Here a handler looks whether the faulting address lies in one of our maps; if
//! so it puts pages of zeros there, from the faulting page to the map's end, and raises the map's
//! flag. The read that faulted then goes on and sees zeros, and whoever read asks
//! [`MappedFile::verify`] before the values are used. Any other SIGBUS goes to the handler that
//! was there before.
//!
//! A handler may not lock or allocate. It walks a list whose nodes are never freed, only used
//! again by later maps, and guards against a node that changes hands just then with a sequence
//! number: odd while its range is being written, different afterwards. A node that is changing
//! cannot be the one that faulted, since whoever reads a map also keeps it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering::SeqCst};

use memmap2::{Mmap, MmapOptions};

use crate::error::{Error, Result};

/// A regular file, mapped for reading.
pub(super) struct MappedFile {
    // Declared before the map, hence dropped before it: the range must leave the table first.
    guard: Guard,
    map: Mmap,
    file: File,
    path: PathBuf,
    name: String,
    seen: Stamp,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, i64),
    inode: (u64, u64),
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Stamp {
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            inode: (meta.dev(), meta.ino()),
        }
    }
}

impl MappedFile {
    /// Opens and maps a regular file; anything else is refused. `name` is for messages.
    pub(super) fn open(path: &Path, name: &str) -> Result<Self> {
        let io = |source| Error::io(path, source);
        // O_NONBLOCK: opening a FIFO must not wait for a writer, nor a tape for a tape.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        let kind = meta.file_type();
        if !kind.is_file() {
            let what = match () {
                () if kind.is_dir() => "a directory",
                () if kind.is_fifo() => "a FIFO",
                () if kind.is_char_device() || kind.is_block_device() => "a device",
                () => "a special file",
            };
            let what = format!("is {what}, not a regular file");
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let seen = Stamp::of(&meta);
        let len = usize::try_from(seen.size)
            .map_err(|_| io(io::Error::from(io::ErrorKind::FileTooLarge)))?;
        let page = install().map_err(io)?;
        // SAFETY: the map is read-only. That the file's bytes may change meanwhile is foreseen:
        // what must be valid (text, counts, offsets) is copied out before it is checked, any byte
        // is a valid weight, and a page that goes away is replaced by the handler.
        let map = unsafe { MmapOptions::new().len(len).map(&file) }.map_err(io)?;
        let start = map.as_ptr() as usize;
        let guard = Guard::new(start, start.saturating_add(len).next_multiple_of(page));
        // A relative path would mean another file after a change of directory.
        let path = std::path::absolute(path).map_err(io)?;
        Ok(MappedFile { guard, map, file, path, name: name.to_string(), seen })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Whether everything read so far was the file that was opened.
    pub(super) fn verify(&self) -> Result<()> {
        let changed = |what: &str| Err(Error::file(&self.name, "file", what));
        if self.guard.faulted() {
            return changed("it shrank, or could not be read, while in use");
        }
        let now = Stamp::of(&self.file.metadata().map_err(|e| Error::io(&self.path, e))?);
        if now.size != self.seen.size {
            let (was, is) = (self.seen.size, now.size);
            return changed(&format!("its size changed from {was} to {is} bytes while in use"));
        }
        if now.modified != self.seen.modified {
            return changed("it was modified while in use");
        }
        match std::fs::metadata(&self.path) {
            Ok(meta) if Stamp::of(&meta).inode != self.seen.inode => {
                changed("it was replaced by another file while in use")
            }
            Ok(_) => Ok(()),
            // Removed: the bytes remain as long as the map does.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(&self.path, e)),
        }
    }
}

/// One map's entry in the table that the handler walks.
struct Node {
    used: AtomicBool,
    /// Odd while `start` and `end` are being written.
    sequence: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
    next: AtomicPtr<Node>,
}

static NODES: AtomicPtr<Node> = AtomicPtr::new(std::ptr::null_mut());
static PAGE: AtomicUsize = AtomicUsize::new(0);
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

fn nodes() -> impl Iterator<Item = &'static Node> {
    let node = |p: &AtomicPtr<Node>| {
        // SAFETY: the list holds null or nodes that were leaked, complete, before they were put
        // into it, and all of a node's fields are atomic.
        unsafe { p.load(SeqCst).as_ref::<'static>() }
    };
    std::iter::successors(node(&NODES), move |n| node(&n.next))
}

impl Node {
    fn set(&self, start: usize, end: usize) {
        self.sequence.fetch_add(1, SeqCst);
        self.start.store(start, SeqCst);
        self.end.store(end, SeqCst);
        self.sequence.fetch_add(1, SeqCst);
    }

    /// Its range, unless that is just changing.
    fn range(&self) -> Option<(usize, usize)> {
        let before = self.sequence.load(SeqCst);
        let range = (self.start.load(SeqCst), self.end.load(SeqCst));
        (before.is_multiple_of(2) && self.sequence.load(SeqCst) == before).then_some(range)
    }
}

/// A range in the table for as long as this lives.
struct Guard(&'static Node);

impl Guard {
    fn new(start: usize, end: usize) -> Self {
        let free = nodes().find(|n| !n.used.swap(true, SeqCst));
        let node = free.unwrap_or_else(|| {
            let node: &'static Node = Box::leak(Box::new(Node {
                used: AtomicBool::new(true),
                sequence: AtomicU32::new(0),
                start: AtomicUsize::new(0),
                end: AtomicUsize::new(0),
                faulted: AtomicBool::new(false),
                next: AtomicPtr::new(std::ptr::null_mut()),
            }));
            let pointer = std::ptr::from_ref(node).cast_mut();
            let mut head = NODES.load(SeqCst);
            loop {
                node.next.store(head, SeqCst);
                match NODES.compare_exchange(head, pointer, SeqCst, SeqCst) {
                    Ok(_) => break node,
                    Err(now) => head = now,
                }
            }
        });
        node.faulted.store(false, SeqCst);
        node.set(start, end);
        Guard(node)
    }

    fn faulted(&self) -> bool {
        self.0.faulted.load(SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(0, 0);
        self.0.used.store(false, SeqCst);
    }
}

/// Installs the handler, once. Gives the size of a page.
fn install() -> io::Result<usize> {
    static DONE: OnceLock<Result<usize, i32>> = OnceLock::new();
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
    let done = DONE.get_or_init(|| {
        // SAFETY: asks for a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
        let page = page.ok().filter(|p| p.is_power_of_two()).ok_or(libc::EINVAL)?;
        PAGE.store(page, SeqCst);
        // SAFETY: a sigaction of zeros is a valid one; each call gets pointers to live ones. The
        // previous handler is kept before ours can run. Ours does only what a handler may: atomic
        // loads and stores, and the system calls mmap, sigaction and raise.
        unsafe {
            let mut previous: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) != 0 {
                return Err(errno());
            }
            let _ = PREVIOUS.set(previous);
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = on_sigbus as *const () as usize;
            // On the alternate stack where there is one, as the previous handler may expect.
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut ours.sa_mask);
            if libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) != 0 {
                return Err(errno());
            }
        }
        Ok(page)
    });
    done.map_err(io::Error::from_raw_os_error)
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler, and SIGBUS has an
    // address when a fault raised it, which a positive code says.
    let fault = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr() as usize) };
    if fault.is_some_and(mend) {
        return;
    }
    // SAFETY: called with this handler's own arguments.
    unsafe { pass_on(signal, info, context, fault.is_some()) }
}

/// Puts zeros where `address` lies in one of our maps. False when it does not.
fn mend(address: usize) -> bool {
    let ours = nodes().find_map(|node| {
        let (start, end) = node.range()?;
        (start..end).contains(&address).then_some((node, end))
    });
    let Some((node, end)) = ours else { return false };
    // Before the zeros, so that no thread can read one and then find the flag down.
    node.faulted.store(true, SeqCst);
    let page = address & !(PAGE.load(SeqCst) - 1);
    // SAFETY: from a page within one of our maps to that map's end; the map is alive, since the
    // thread that faulted is reading it. Nobody writes to it, and its readers expect any bytes.
    let mapped = unsafe {
        libc::mmap(
            page as *mut libc::c_void,
            end - page,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// Does what would have happened without our handler.
///
/// # Safety
/// To be called from a handler of `signal`, with its arguments.
unsafe fn pass_on(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    fault: bool,
) {
    let previous = PREVIOUS.get();
    let handler = previous.map_or(libc::SIG_DFL, |p| p.sa_sigaction);
    match handler {
        // A fault cannot be ignored: the instruction would fault again for ever.
        libc::SIG_IGN if !fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: restores the default action and raises the signal, which is blocked until
            // this handler returns and then does what it does by default.
            unsafe {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
                libc::raise(signal);
            }
        }
        handler if previous.is_some_and(|p| p.sa_flags & libc::SA_SIGINFO != 0) => {
            type Full = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: installed with SA_SIGINFO, so it is a function of these three arguments.
            let handler = unsafe { std::mem::transmute::<usize, Full>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: installed without SA_SIGINFO, so it is a function of the signal alone.
            let handler =
                unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}
