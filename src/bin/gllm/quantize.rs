//! `gllm quantize`: the same model in fewer bits.
//!
//! The file is written beside its final name as `OUT.part`, brought to the disk, and renamed: under
//! its name there is a whole file or none. Whatever ends the command before removes the part, a
//! second ctrl-C as well. What the disk has not room for is not begun.

use crate::args::Quantize;
use crate::{End, Failure, load, signal};
use gllm_kernels::error::{Size, quoted};
use gllm_kernels::model::{Conversion, Format, Nearness, Policy, Sink, Tensor};
use gllm_kernels::{Error, Result};
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Runs the command.
pub fn quantize(args: &Quantize) -> Result<End, Failure> {
    signal::catch_for_files();
    let Some(main) = args.format.or(args.bits) else {
        return Err(Failure::Usage("give --bits or --type".to_string()));
    };
    check_target(args)?;
    let model = load::open(Some(&args.input))?;
    if model.is_folder() {
        let what = "a folder; it is GGUF files that are read here";
        return Err(Failure::Message(format!("{}: {what}", model.name())));
    }
    let policy = Policy { main, pure: args.pure, tied: model.tensor("output.weight").is_none() };
    let format = |t: &Tensor| policy.format(&t.name, t.format, &t.dims);
    let formats = model.tensors().iter().map(format).collect();
    let conversion = Conversion::new(&model, formats, main)?;
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let mut part = Part::create(args)?;
    part.check_space(args, conversion.bytes())?;
    let bar = match io::stderr().is_terminal() {
        true => indicatif::ProgressBar::new(conversion.bytes()),
        false => indicatif::ProgressBar::hidden(),
    };
    let total = Nearness::default();
    let mut writing = Writing { part: &mut part, bar, policy, total, failed: None };
    let finished = conversion.run(threads, &mut writing)?;
    let Writing { bar, total, failed, .. } = writing;
    bar.finish_and_clear();
    if let Some(error) = failed {
        return Err(error.into());
    }
    if finished {
        model.verify_unchanged()?;
        part.sync()?;
        check_target(args)?;
    }
    // Asked for the last time, so that a signal while the disk was waited for counts as well.
    if let Some(signal) = signal::caught() {
        return Ok(End::Interrupted(signal));
    }
    part.rename(&args.output)?;
    let elements: f64 = model.tensors().iter().map(|t| t.elements() as f64).sum();
    writeln!(
        io::stdout(),
        "{} -> {}, {:.2} bits a weight, error {:.3}%",
        Size(model.file_bytes()),
        Size(conversion.bytes()),
        8.0 * conversion.bytes() as f64 / elements.max(1.0),
        100.0 * total.relative()
    )?;
    Ok(End::Done)
}

/// The file as it is written, and what is said of it meanwhile.
struct Writing<'p> {
    part: &'p mut Part,
    bar: indicatif::ProgressBar,
    policy: Policy,
    total: Nearness,
    /// Of writing to standard output.
    failed: Option<io::Error>,
}

impl Sink for Writing<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<bool> {
        if signal::caught().is_some() || self.failed.is_some() {
            return Ok(false);
        }
        self.part.write(bytes)?;
        self.bar.inc(bytes.len() as u64);
        Ok(true)
    }

    fn done(&mut self, tensor: &Tensor, format: Format, near: Option<Nearness>) {
        let Some(near) = near else { return };
        self.total.add(near);
        let name = quoted(&tensor.name);
        let name = name.trim_matches('"');
        let (from, to) = (tensor.format.name(), format.name());
        let error = 100.0 * near.relative();
        let wanted = self.policy.wanted(&tensor.name, tensor.format, &tensor.dims);
        let why = match (wanted == format, tensor.dims.last()) {
            (false, Some(cols)) => format!("  (rows of {cols} do not fit {})", wanted.name()),
            _ => String::new(),
        };
        let line = format!("{name:<32} {from:>6} -> {to:<6} error {error:7.3}%{why}");
        self.bar.suspend(|| {
            if let Err(error) = writeln!(io::stdout(), "{line}") {
                self.failed = Some(error);
            }
        });
    }
}

/// Refuses to write where a file is that is to be kept.
fn check_target(args: &Quantize) -> Result<(), Failure> {
    let refuse = |what: &str| {
        let name = args.output.display().to_string().escape_debug().to_string();
        Err(Failure::Message(format!("{name}: {what}")))
    };
    let found = match fs::metadata(&args.output) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(&args.output, error).into()),
        Ok(found) => found,
    };
    if fs::metadata(&args.input).is_ok_and(|input| same_file(&input, &found)) {
        return refuse("is the file that is read");
    }
    if !found.is_file() {
        return refuse("there is something that is not a regular file");
    }
    if !args.force {
        return refuse("there is such a file; --force replaces it");
    }
    Ok(())
}

fn same_file(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Bytes that the disk of a file still takes from this user, where it tells.
fn free(file: &File) -> Option<u64> {
    let mut disk = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the file is open, and the call writes to what is its own.
    let disk = unsafe {
        if libc::fstatvfs(file.as_raw_fd(), disk.as_mut_ptr()) != 0 {
            return None;
        }
        disk.assume_init()
    };
    #[allow(clippy::unnecessary_cast, reason = "not every system has 64 bits here")]
    let (all, blocks, bytes) = (disk.f_blocks as u64, disk.f_bavail as u64, disk.f_frsize as u64);
    // A disk without blocks does not count them.
    if all == 0 { None } else { Some(blocks.saturating_mul(bytes)) }
}

/// The file until it is whole. It is locked, and removed when this is dropped.
struct Part {
    path: PathBuf,
    file: BufWriter<File>,
    renamed: bool,
}

impl Part {
    /// Makes the part of the file to write. One that a process left behind when it was killed is
    /// replaced; one that another process is writing is not.
    fn create(args: &Quantize) -> Result<Part, Failure> {
        let mut path = args.output.clone().into_os_string();
        path.push(".part");
        let path = PathBuf::from(path);
        let fail = |error| Failure::from(Error::io(&path, error));
        if let Ok(old) = fs::symlink_metadata(&path)
            && old.is_file()
        {
            let name = path.display().to_string().escape_debug().to_string();
            if fs::metadata(&args.input).is_ok_and(|input| same_file(&input, &old)) {
                return Err(Failure::Message(format!("{name}: is the file that is read")));
            }
            match File::open(&path).map_err(fail)?.try_lock() {
                Ok(()) => fs::remove_file(&path).map_err(fail)?,
                Err(TryLockError::WouldBlock) => {
                    let what = format!("{name}: another process is writing it");
                    return Err(Failure::Message(what));
                }
                Err(TryLockError::Error(error)) => return Err(fail(error)),
            }
        }
        let made = signal::undisturbed(|| {
            let file = File::create_new(&path)?;
            signal::remove_at_end(Some(&path));
            Ok(file)
        });
        let file = BufWriter::new(made.map_err(fail)?);
        let part = Part { path: path.clone(), file, renamed: false };
        match part.file.get_ref().try_lock() {
            Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Unsupported => {
                Err(fail(error))
            }
            _ => Ok(part),
        }
    }

    /// Refuses a file of so many bytes where there is not as much free. The file that it is to
    /// replace is there until the end, and counts as used.
    fn check_space(&self, args: &Quantize, needs: u64) -> Result<(), Failure> {
        match free(self.file.get_ref()) {
            Some(has) if has < needs => {
                let name = args.output.display().to_string().escape_debug().to_string();
                let (needs, has) = (Size(needs), Size(has));
                let what = format!("{name}: needs {needs}, {has} are free on that disk");
                Err(Failure::Message(what))
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))
    }

    /// Brings all that was written to the disk.
    fn sync(&mut self) -> Result<()> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|e| Error::io(&self.path, e))
    }

    /// Gives the file its name.
    fn rename(mut self, to: &Path) -> Result<()> {
        signal::undisturbed(|| {
            fs::rename(&self.path, to)?;
            signal::remove_at_end(None);
            Ok(())
        })
        .map_err(|e| Error::io(to, e))?;
        self.renamed = true;
        // The name is on the disk when the folder is; not every system lets one ask for that.
        let folder = to.parent().filter(|f| !f.as_os_str().is_empty());
        if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.renamed {
            signal::undisturbed(|| {
                // Nothing more can be done if this fails too.
                let _ = fs::remove_file(&self.path);
                signal::remove_at_end(None);
            });
        }
    }
}
