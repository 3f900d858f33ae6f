//! What is not a regular file is refused, and a file that changes while it is open is noticed.

use gllm_kernels::Error;
use gllm_kernels::model::{Format, GgufWriter, Model};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// A folder of this test's own, removed with this.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gllm-model-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const FLOATS: usize = 1 << 18;

/// A model of one tensor of a mebibyte.
fn large() -> Vec<u8> {
    GgufWriter::new()
        .meta("general.architecture", "test")
        .tensor("t", Format::F32, &[FLOATS], &[1; 4 * FLOATS])
        .finish()
}

fn refused(path: &Path, why: &str) {
    let error = Model::open(path).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("{}: {why}", path.display()));
}

#[test]
fn only_regular_files_are_opened() {
    let folder = Folder::new("kinds");
    refused(&folder.0, "is a directory, not a regular file");
    refused(&folder.0.join("absent.gguf"), "No such file or directory (os error 2)");
    refused(Path::new("/dev/zero"), "is a device, not a regular file");
    let fifo = folder.0.join("fifo");
    let name = CString::new(fifo.as_os_str().as_bytes()).unwrap();
    // SAFETY: a path that ends in NUL.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    // Nobody writes to it: a plain open would wait for ever.
    refused(&fifo, "is a FIFO, not a regular file");
    let link = folder.0.join("link");
    std::os::unix::fs::symlink(&fifo, &link).unwrap();
    refused(&link, "is a FIFO, not a regular file");
    let socket = folder.0.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    refused(&socket, "No such device or address (os error 6)");
    let empty = Model::open(&folder.file("e\u{1b}.gguf", b"")).unwrap_err().to_string();
    assert!(
        empty.ends_with(r"e\u{1b}.gguf: header, byte 0: magic of 4 bytes, 0 are left"),
        "{empty}"
    );
}

#[test]
fn a_file_reads_as_the_same_bytes_do() {
    let folder = Folder::new("same");
    let bytes = large();
    let path = folder.file("m.gguf", &bytes);
    let (file, memory) = (Model::open(&path).unwrap(), super::open(&bytes).unwrap());
    let (a, b) = (file.tensor("t").unwrap(), memory.tensor("t").unwrap());
    assert_eq!(file.bytes(a), memory.bytes(b));
    assert_eq!(file.file_bytes(), bytes.len() as u64);
    assert_eq!(file.name(), path.display().to_string());
    assert!(file.tensor("u").is_none() && file.tensor("").is_none());
    file.verify_unchanged().unwrap();
    memory.verify_unchanged().unwrap();
}

fn changed(model: &Model, path: &Path, what: &str) {
    let line = format!("{}: file: {what}", path.display());
    assert_eq!(model.verify_unchanged().unwrap_err().to_string(), line);
}

#[test]
fn a_file_that_shrinks_is_an_error_and_no_signal() {
    let folder = Folder::new("shrink");
    let bytes = large();
    let path = folder.file("m.gguf", &bytes);
    // Several maps, so that the right one is found; the first are gone again by then.
    drop([Model::open(&path).unwrap(), Model::open(&path).unwrap()]);
    let (other, model) = (folder.file("n.gguf", &bytes), Model::open(&path).unwrap());
    let other = Model::open(&other).unwrap();

    OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
    let size = bytes.len();
    changed(&model, &path, &format!("its size changed from {size} to 8192 bytes while in use"));
    let seen = model.bytes(model.tensor("t").unwrap());
    assert!(seen[..4096].iter().all(|&b| b == 1), "what is left of the file");
    // Here the process would end.
    assert!(seen[8192..].iter().all(|&b| b == 0), "what is gone");
    changed(&model, &path, "it shrank, or could not be read, while in use");

    // Growing back heals nothing, and other maps are as they were.
    fs::write(&path, &bytes).unwrap();
    changed(&model, &path, "it shrank, or could not be read, while in use");
    assert!(other.bytes(other.tensor("t").unwrap()).iter().all(|&b| b == 1));
    other.verify_unchanged().unwrap();
    drop(model);
    Model::open(&path).unwrap().verify_unchanged().unwrap();
}

#[test]
fn threads_may_fault_at_once() {
    let folder = Folder::new("threads");
    let path = folder.file("m.gguf", &large());
    let model = Model::open(&path).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    let seen = model.bytes(model.tensor("t").unwrap());
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| assert!(seen.iter().rev().step_by(1000).all(|&b| b == 0)));
        }
    });
    assert!(model.verify_unchanged().is_err());
}

#[test]
fn a_file_that_changes_is_noticed() {
    let folder = Folder::new("change");
    let bytes = large();
    let path = folder.file("m.gguf", &bytes);

    let model = Model::open(&path).unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"x").unwrap();
    let size = bytes.len();
    let what = format!("its size changed from {size} to {} bytes while in use", size + 1);
    changed(&model, &path, &what);

    let model = Model::open(&path).unwrap();
    let later = SystemTime::now() + Duration::from_secs(5);
    File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    changed(&model, &path, "it was modified while in use");

    let model = Model::open(&path).unwrap();
    fs::rename(folder.file("new", &bytes), &path).unwrap();
    changed(&model, &path, "it was replaced by another file while in use");

    // Removing the name takes nothing away from whoever has the file open.
    let model = Model::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    model.verify_unchanged().unwrap();
    assert_eq!(model.bytes(model.tensor("t").unwrap())[4 * FLOATS - 1], 1);
}

/// Which of the stories below a child process is to tell.
const STORY: &str = "GLLM_TEST_SIGBUS";

/// Runs one story in a process of its own: how that ended.
fn tell(story: &str) -> std::process::ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "files::a_story_for_a_child", "--ignored", "--quiet"]);
    child.env(STORY, story).output().unwrap().status
}

extern "C" fn leave(_: libc::c_int) {
    // SAFETY: ends the process at once, which a handler may do.
    unsafe { libc::_exit(42) }
}

#[test]
#[ignore = "run by the test below, in a process of its own"]
fn a_story_for_a_child() {
    let Ok(story) = std::env::var(STORY) else { return };
    let folder = Folder::new(&story);
    // SAFETY: replaces the disposition of one signal, by one that is valid.
    let set = |handler: usize| unsafe { libc::signal(libc::SIGBUS, handler) };
    match story.as_str() {
        "default" => set(libc::SIG_DFL),
        "ignored" | "sent" => set(libc::SIG_IGN),
        _ => set(leave as *const () as usize),
    };
    let model = Model::open(&folder.file("m.gguf", &large())).unwrap();
    model.verify_unchanged().unwrap();
    let path = folder.file("not-ours", &[1; 8192]);
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    // SAFETY: read through volatile reads only.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    file.set_len(0).unwrap();
    drop(folder);
    if story == "sent" {
        // SAFETY: sends this process a signal that it ignores.
        unsafe { libc::raise(libc::SIGBUS) };
        std::process::exit(7);
    }
    // SAFETY: an address within the map; that it faults is the point.
    let byte = unsafe { map.as_ptr().add(4096).read_volatile() };
    println!("read {byte}");
}

#[test]
fn other_maps_fault_as_they_did() {
    assert_eq!(tell("default").signal(), Some(libc::SIGBUS));
    assert_eq!(tell("ignored").signal(), Some(libc::SIGBUS));
    assert_eq!(tell("handled").code(), Some(42));
    assert_eq!(tell("sent").code(), Some(7));
}
