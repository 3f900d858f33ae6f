//! `gllm plan`, `gllm info` and `gllm graph`: what would run, and what a file holds.

use crate::args::{Graph, Info, Plan};
use crate::{End, Failure, load};
use gllm_kernels::error::{Size, quoted};
use gllm_kernels::graph::arch;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Shows launches and memory.
pub fn plan(args: &Plan) -> Result<End, Failure> {
    let model = load::open(args.model.as_deref())?;
    let default = load::trained_context(&model).unwrap_or(4096).clamp(1, 4096);
    let context = load::check_context(args.machine.ctx.unwrap_or(default))?;
    let (_, plans) = load::plan(&model, &args.machine, load::one_sequence(&args.machine, context))?;
    write!(io::stdout().lock(), "{}", plans.many)?;
    Ok(End::Done)
}

/// Shows what a file holds, and the instruction set that it would run on.
pub fn info(args: &Info) -> Result<End, Failure> {
    let isa = load::isa(None)?;
    let model = load::open(args.model.as_deref())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    writeln!(out, "{}  {}", model.name(), Size(model.file_bytes()))?;
    for (key, value) in model.meta().iter() {
        writeln!(out, "  {:<48} {value}", quoted(key).trim_matches('"'))?;
    }
    let mut formats: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in model.tensors() {
        let entry = formats.entry(tensor.format.name()).or_default();
        *entry = (entry.0 + 1, entry.1 + tensor.size() as u64);
    }
    for packed in model.packed() {
        let entry = formats.entry(packed.format.name()).or_default();
        *entry = (entry.0 + 1, entry.1 + packed.size() as u64);
    }
    writeln!(out, "\n{} tensors", model.tensors().len() + model.packed().len())?;
    for (format, (count, bytes)) in formats {
        writeln!(out, "  {format:<6} {count:>6}  {}", Size(bytes))?;
    }
    writeln!(out, "\ninstruction set {}, of {}", isa.name(), load::isa_names())?;
    if args.tensors {
        writeln!(out)?;
        let floats = model.tensors().iter().map(|t| (&t.name, t.format, &t.dims[..]));
        let packed = model.packed().iter().map(|p| (&p.name, p.format, &p.dims[..]));
        for (name, format, dims) in floats.chain(packed) {
            let name = quoted(name);
            let name = name.trim_matches('"');
            writeln!(out, "  {name:<40} {:<6} {dims:?}", format.name())?;
        }
    }
    out.flush()?;
    Ok(End::Done)
}

/// Prints the graph of one step.
pub fn graph(args: &Graph) -> Result<End, Failure> {
    let model = load::open(args.model.as_deref())?;
    let graph = arch::build_with(model.meta(), &model, &args.files.library())?;
    let text = if args.dot { graph.to_dot() } else { graph.to_string() };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(End::Done)
}
