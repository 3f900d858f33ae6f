//! `gllm quantize`, and what is left of it whatever happens.

use super::{folder, gllm, refused, run, text};
use gllm_kernels::embedded::TINY;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The built-in model in a folder of its own, and a name for what is made of it.
fn to_quantize(name: &str) -> (PathBuf, String, String) {
    let folder = folder(name);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let (input, output) = (path("tiny.gguf"), path("out.gguf"));
    fs::write(&input, TINY).unwrap();
    (folder, input, output)
}

/// The names of a folder's files.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn quantized_models_run() {
    let (folder, input, output) = to_quantize("quantized");
    for (arguments, some) in [
        (&["--bits", "8"][..], "Q8_0"),
        (&["--bits", "4"], "Q4_K"),
        (&["--bits", "2", "--pure"], "Q2_K"),
        (&["--bits", "1", "--threads", "3"], "Q1_0"),
        (&["--type", "mxfp4"], "MXFP4"),
        (&["--type", "F16"], "F16"),
    ] {
        let all = [&["quantize", &input, &output, "--force"][..], arguments].concat();
        let said = run(&all);
        let lines = text(&said.stdout);
        assert!(said.status.success(), "{}", text(&said.stderr));
        // A line a tensor that changes, with its error, and the total.
        assert!(lines.lines().count() > 50 && lines.contains(some), "{lines}");
        assert!(lines.lines().all(|line| line.contains("error ") && line.contains('%')), "{lines}");
        assert!(lines.lines().last().unwrap().contains("bits a weight"));
        let info = text(&run(&["info", &output]).stdout);
        assert!(info.contains("general.quantization_version"), "{info}");
        assert!(run(&["run", &output, "-p", "The king", "-n", "4"]).status.success());
        assert_eq!(names(&folder), ["out.gguf", "tiny.gguf"]);
    }
    // Eight bits say what the model says.
    let say = |path: &str| run(&["run", path, "-p", "The king said", "-n", "12"]).stdout;
    assert!(run(&["quantize", &input, &output, "--force", "--type", "F32"]).status.success());
    assert_eq!(say(&input), say(&output));
}

#[test]
fn quantize_keeps_files_that_are_there() {
    let (folder, input, output) = to_quantize("quantize_keeps");
    refused(&["quantize", &input, &input, "--bits", "8", "--force"], "the file that is read");
    let link = folder.join("link.gguf");
    fs::hard_link(&input, &link).unwrap();
    let link = link.to_str().unwrap();
    refused(&["quantize", &input, link, "--bits", "8", "--force"], "the file that is read");
    fs::write(&output, "precious").unwrap();
    refused(&["quantize", &input, &output, "--bits", "8"], "--force");
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    assert_eq!(fs::read(&input).unwrap(), TINY);
    let gone = folder.join("gone");
    refused(&["quantize", gone.to_str().unwrap(), &output, "--bits", "8", "--force"], "gone");
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    refused(&["quantize", &input, folder.to_str().unwrap(), "--bits", "8", "--force"], "regular");
    let nowhere = folder.join("no/out.gguf");
    refused(&["quantize", &input, nowhere.to_str().unwrap(), "--bits", "8"], "No such file");
    // The part of a file is a file that is read, too.
    let part = format!("{output}.part");
    fs::write(&part, TINY).unwrap();
    refused(&["quantize", &part, &output, "--bits", "8", "--force"], "the file that is read");
    assert_eq!(fs::read(&part).unwrap(), TINY);
    // One that was left behind is replaced, one that is being written is not.
    let writing = fs::File::open(&part).unwrap();
    writing.lock().unwrap();
    refused(&["quantize", &input, &output, "--bits", "8", "--force"], "another process");
    drop(writing);
    assert!(run(&["quantize", &input, &output, "--bits", "8", "--force"]).status.success());
    assert_eq!(names(&folder), ["link.gguf", "out.gguf", "tiny.gguf"]);
    for arguments in
        [&["--bits", "3"][..], &["--type", "Q9"], &["--bits", "8", "--type", "F16"], &[]]
    {
        let all = [&["quantize", &input, &output][..], arguments].concat();
        assert_eq!(run(&all).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn quantize_leaves_nothing_on_a_full_disk() {
    let (folder, input, output) = to_quantize("quantize_full");
    // A file may have 100 KiB here. Whether or not the system would end the process for it, it is
    // an error of writing.
    for trap in ["", "trap '' XFSZ; "] {
        let script = format!("{trap}ulimit -f 100; exec \"$0\" \"$@\"");
        let args = ["quantize", &input, &output, "--type", "F16"];
        let said = Command::new("bash")
            .args(["-c", &script, env!("CARGO_BIN_EXE_gllm")])
            .args(args)
            .output()
            .unwrap();
        let error = text(&said.stderr);
        assert_eq!(said.status.code(), Some(1), "{error}");
        assert!(error.lines().count() == 1 && error.contains("out.gguf.part: "), "{error}");
        assert_eq!(names(&folder), ["tiny.gguf"]);
    }
}

/// Bytes that this disk has free.
fn free(folder: &Path) -> u64 {
    let said = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(folder).output().unwrap();
    let numbers = text(&said.stdout);
    numbers.split_whitespace().map(|n| n.parse::<u64>().unwrap()).product()
}

#[test]
#[cfg(target_os = "linux")]
fn quantize_does_not_begin_what_the_disk_has_no_room_for() {
    use gllm_kernels::model::{Format, GgufWriter};
    let folder = folder("quantize_room");
    let (input, output) = (folder.join("in.gguf"), folder.join("out.gguf"));
    // A file of holes takes no room itself. In F32 it would be twice as long, and more than is free.
    let cols = 1 << 16;
    let rows = usize::try_from(free(&folder)).unwrap() / (4 * cols) + (1 << 10);
    let header = GgufWriter::new().info("a.weight", Format::F16.ggml(), &[rows, cols], 0).finish();
    fs::write(&input, &header).unwrap();
    let bytes = (header.len() + 2 * rows * cols) as u64;
    fs::File::options().write(true).open(&input).unwrap().set_len(bytes).unwrap();
    let (input, out) = (input.to_str().unwrap(), output.to_str().unwrap());
    let start = std::time::Instant::now();
    refused(&["quantize", input, out, "--type", "F32"], "out.gguf: needs ");
    refused(&["quantize", input, out, "--type", "F32"], " are free on that disk");
    assert_eq!(names(&folder), ["in.gguf"]);
    // One that is there is kept, and does not count as room.
    fs::write(&output, "precious").unwrap();
    refused(&["quantize", input, out, "--type", "F32", "--force"], " are free on that disk");
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    assert_eq!(names(&folder), ["in.gguf", "out.gguf"]);
    assert!(start.elapsed() < std::time::Duration::from_secs(20));
    // Who copies files may not know of holes.
    fs::remove_dir_all(&folder).unwrap();
}

/// A model that takes a while to quantize.
fn slow_to_quantize(name: &str) -> (PathBuf, String, String) {
    use gllm_kernels::model::{Format, GgufWriter};
    let folder = folder(name);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let (rows, cols) = (16 << 10, 4096);
    let values: Vec<u8> = (0..rows * cols).flat_map(|i| [(i % 251) as u8, 0x3c]).collect();
    let file = GgufWriter::new().tensor("a.weight", Format::F16, &[rows, cols], &values).finish();
    fs::write(path("in.gguf"), file).unwrap();
    let (input, output) = (path("in.gguf"), path("out.gguf"));
    (folder, input, output)
}

/// Begins to quantize such a model, and comes back when the part is there.
fn quantizing(folder: &Path, input: &str, output: &str) -> std::process::Child {
    use std::os::unix::process::CommandExt;
    let mut command = gllm(&["quantize", input, output, "--type", "IQ4_NL", "--threads", "1"]);
    // Who runs the tests may have told what it starts not to hear of a hangup.
    // SAFETY: a call that may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        });
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while names(folder).len() < 2 {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    child
}

fn signal(child: &std::process::Child, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: a signal to our own child.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn ctrl_c_ends_quantize_without_a_trace() {
    let (folder, input, output) = slow_to_quantize("quantize_ctrl_c");
    for (number, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143), (libc::SIGHUP, 129)] {
        let child = quantizing(&folder, &input, &output);
        signal(&child, number);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        assert_eq!(names(&folder), ["in.gguf"]);
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn a_second_ctrl_c_ends_quantize_without_a_trace_too() {
    let (folder, input, output) = slow_to_quantize("quantize_twice");
    let child = quantizing(&folder, &input, &output);
    // It hears of both before it can do anything about the first.
    for number in [libc::SIGSTOP, libc::SIGINT, libc::SIGTERM, libc::SIGCONT] {
        signal(&child, number);
    }
    let output = child.wait_with_output().unwrap();
    assert!(matches!(output.status.code(), Some(130 | 143)), "{:?}", output.status);
    assert_eq!(names(&folder), ["in.gguf"]);
}

/// At any time: there is the old file, or the whole new one, and no part of one.
#[test]
fn ctrl_c_at_any_time_leaves_a_whole_file() {
    let (folder, input, output) = to_quantize("quantize_any_time");
    let args = ["quantize", &input, &output, "--type", "Q8_0", "--force", "--threads", "1"];
    let start = std::time::Instant::now();
    assert!(run(&args).status.success());
    let takes = start.elapsed();
    let whole = fs::read(&output).unwrap();
    let mut ends = [0; 3];
    for i in 0..26u32 {
        fs::write(&output, "old").unwrap();
        let mut child = gllm(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(takes * i / 20);
        // Of two signals the second mostly comes before the first is noticed.
        if child.try_wait().unwrap().is_none() {
            signal(&child, libc::SIGINT);
            if i % 2 == 1 {
                signal(&child, libc::SIGTERM);
            }
        }
        let status = child.wait_with_output().unwrap().status;
        assert_eq!(names(&folder), ["out.gguf", "tiny.gguf"], "{i}: {status}");
        let left = fs::read(&output).unwrap();
        assert!(left == whole || left == b"old", "{i}: {status}, {} bytes", left.len());
        if status.success() {
            assert!(left == whole, "{i}");
        }
        let end = if status.success() { 0 } else { 1 + usize::from(status.code().is_some()) };
        ends[end] += 1;
    }
    println!("finished, ended before the signal was caught, after: {ends:?}");
    assert!(ends[2] > 0, "{ends:?}");
}

/// `--quantize` while loading is `gllm quantize` and then a run, bit for bit.
#[test]
fn weights_are_quantized_while_loading() {
    let (folder, input, output) = to_quantize("on_load");
    let words = folder.join("words.txt");
    fs::write(
        &words,
        "The king said that he would go out to the sea, and so they all went. ".repeat(9),
    )
    .unwrap();
    let words = words.to_str().unwrap();
    let value = |path: &str, more: &[&str]| {
        let all = [&["perplexity", path, words, "--window", "32", "--json"][..], more].concat();
        let said = run(&all);
        assert!(said.status.success(), "{}", text(&said.stderr));
        let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        said["perplexity"].as_f64().unwrap().to_bits()
    };
    let plan = |path: &str, more: &[&str]| {
        let said = run(&[&["plan", path, "--ctx", "64", "--backend", "cpu"][..], more].concat());
        assert!(said.status.success(), "{}", text(&said.stderr));
        text(&said.stdout)
    };
    let mut values = vec![value(&input, &[])];
    for bits in ["1", "2", "4", "8"] {
        let made = run(&["quantize", &input, &output, "--force", "--bits", bits]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let on_load = value(&input, &["--quantize", bits]);
        assert_eq!(on_load, value(&output, &[]), "{bits} bits");
        assert_eq!(plan(&input, &["--quantize", bits]), plan(&output, &[]), "{bits} bits");
        values.push(on_load);
    }
    // The control: each is another model.
    values.sort_unstable();
    values.dedup();
    assert_eq!(values.len(), 5);
    let odd = run(&["run", &input, "-p", "a", "--quantize", "3"]);
    assert!(text(&odd.stderr).contains("there are 1, 2, 4 and 8"), "{}", text(&odd.stderr));
}
