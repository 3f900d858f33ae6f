//! The memory of a model on a device, and the door to it.

use super::CudaBackend;
use super::abi::{Sample, SamplerState};
use super::driver::{Device, Function, Graph, Memory, Module, Pinned, Shape, Stream};
use super::lower::{gemm_shared, launches, tensor_kind};
use super::program::{
    Bases, Kernel, Launch, Parameters, Program, RopeTable, Tensor, TensorKind, Work,
};
use crate::error::{Size, quoted};
use crate::graph::op::Sampler;
use crate::graph::{DType, Lead, TensorType, Weights};
use crate::plan::{Bytes, Limits, Progress, Role, Session, StepInput, Traffic, origin};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the device leaves when a logit was not finite.
const NO_TOKEN: u32 = u32::MAX;

/// Weights and caches on a device, and the programs that run on them.
pub struct CudaSession {
    /// One row, one token: what [`Session::step`] replays.
    graph: Option<Graph>,
    programs: Vec<Ready>,
    /// Records the tokens of rows that the caller gives; none where nothing is sampled.
    note: Option<(Function, Sample)>,
    weights: Memory,
    kv: Memory,
    scratch: Memory,
    logits: Memory,
    tables: Memory,
    work: Memory,
    bases: Bases,
    /// The word that the sampler leaves for the host.
    result: Pinned,
    /// Tokens, positions, slots and rows on their way to the device.
    staging: Pinned,
    state: State,
    traffic: Traffic,
    /// What went wrong with the device: then nothing more is run.
    dead: Option<String>,
    _modules: Vec<Module>,
    stream: Stream,
    device: Device,
}

/// A program with its launches.
struct Ready {
    program: Program,
    launches: Vec<(Launch, Function)>,
}

/// What the host knows of the step.
struct State {
    rows: usize,
    outs: usize,
    /// Position and slot of the last row with logits.
    last: (u32, u32),
    /// Tokens sampled in the last step.
    sampled: Vec<u32>,
    /// The program of the last step.
    program: usize,
}

impl std::fmt::Debug for CudaSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaSession").field("device", &self.device.name).finish_non_exhaustive()
    }
}

impl CudaSession {
    pub(super) fn load(
        backend: &CudaBackend,
        programs: Vec<Program>,
        weights: &dyn Weights,
        progress: &Progress<'_>,
    ) -> Result<CudaSession> {
        let _span = tracing::info_span!("load").entered();
        let Some(last) = programs.last() else {
            return Err(Error::Invalid("a session needs a program".to_string()));
        };
        check_programs(&programs)?;
        let device = backend.device.clone();
        device.bind()?;
        let limits = *last.plan.limits();
        let work = programs.iter().map(|p| p.work).fold(Work::default(), Work::max);
        let offsets = work.offsets().ok_or_else(too_large)?;
        let most = |of: fn(&Bytes) -> u64| {
            size(programs.iter().map(|p| of(p.plan.bytes())).max().unwrap_or(0))
        };
        let bytes = *last.plan.bytes();
        check_memory(&device, &bytes, offsets[10] as u64, &limits)?;

        let stream = Stream::new(&device)?;
        let (modules, functions) = kernels(backend, &device)?;
        let memory = |bytes: usize| Memory::new(&device, &stream, bytes);
        let (mut result, staging) = (
            Pinned::new(&device, 64)?,
            Pinned::new(&device, limits.rows.saturating_mul(16).saturating_add(4096))?,
        );
        result.bytes_mut().fill(0xff);
        let mut session = CudaSession {
            graph: None,
            programs: Vec::new(),
            note: None,
            weights: memory(size(bytes.weights)?)?,
            kv: memory(size(bytes.kv)?)?,
            scratch: memory(most(|b| b.scratch)?)?,
            logits: memory(most(|b| b.logits)?)?,
            tables: memory(size(bytes.tables)?)?,
            work: memory(offsets[10])?,
            bases: Bases::default(),
            result,
            staging,
            state: State {
                rows: 0,
                outs: 0,
                last: (0, 0),
                sampled: Vec::with_capacity(limits.outs),
                program: 0,
            },
            traffic: Traffic::default(),
            dead: None,
            _modules: modules,
            stream,
            device,
        };
        session.bases = session.addresses(&work, &offsets, &limits)?;
        session.stream.wait()?;
        session.fill(&last.tensors, weights, progress)?;
        session.tabulate(&last.ropes, limits.context, weights)?;
        for program in programs {
            let made = launches(&backend.target.0, &program, &session.bases)?;
            let with = |l: Launch| Ok((function(&functions, Some(l.kernel))?, l));
            let made: Result<Vec<_>> = made.into_iter().map(with).collect();
            let launches = made?.into_iter().map(|(f, l)| (l, f)).collect();
            session.programs.push(Ready { program, launches });
        }
        let note = Sample {
            tokens: session.bases.tokens,
            positions: session.bases.positions,
            slots: session.bases.slots,
            history: session.bases.history,
            context: u32::try_from(limits.context).map_err(|_| too_large())?,
            ..Sample::default()
        };
        if work.history > 0 {
            session.note = Some((function(&functions, None)?, note));
        }
        session.set_sampler(&Sampler::greedy())?;
        session.record()?;
        Ok(session)
    }

    fn addresses(&self, work: &Work, at: &[usize; 11], limits: &Limits) -> Result<Bases> {
        let base = self.work.address;
        let part = |i: usize| base + at[i] as u64;
        let list = |i: usize| {
            // Four lists, each from a multiple of 256.
            part(9) + (limits.rows * 4).next_multiple_of(256) as u64 * i as u64
        };
        Ok(Bases {
            weights: self.weights.address,
            kv: self.kv.address,
            scratch: self.scratch.address,
            logits: self.logits.address,
            tables: self.tables.address,
            raw: part(0),
            x: part(1),
            high: part(2),
            low: part(2) + work.split as u64 / 2,
            partial: part(3),
            adjusted: part(4),
            best: part(5),
            arrived: part(6),
            sampled: part(7),
            history: part(8),
            tokens: list(0),
            positions: list(1),
            slots: list(2),
            outs: list(3),
            sampler: list(3) + (limits.outs * 4).next_multiple_of(256) as u64,
            result: self.result.address()?,
        })
    }

    /// Repacks every tensor and sends it up: workers repack pieces side by side, each into pinned
    /// memory of its own, and the copy of one runs under the repacking of the others. What is told
    /// counts bytes as they are repacked.
    fn fill(
        &self,
        tensors: &[Tensor],
        weights: &dyn Weights,
        progress: &Progress<'_>,
    ) -> Result<()> {
        const PIECE: usize = 8 << 20;
        let gone = |name: &str| Error::Invalid(format!("the tensor {} is gone", quoted(name)));
        let mut sources = Vec::new();
        for tensor in tensors {
            sources.push(weights.bytes(&tensor.name).ok_or_else(|| gone(&tensor.name))?);
        }
        let mut pieces: Vec<Piece<'_>> = Vec::new();
        for (tensor, src) in tensors.iter().zip(&sources) {
            let (name, src): (_, &[u8]) = (&tensor.name, src);
            let missing = || gone(name);
            let (format, dims) = weights.find(name).ok_or_else(missing)?;
            let ty = TensorType { dtype: DType::Weight(format), lead: Lead::Fixed, dims };
            let wants = tensor_kind(&ty).map(|k| k.bytes());
            if wants != Some(tensor.kind.bytes()) {
                let what = format!("the tensor {} is {ty}, which was not planned", quoted(name));
                return Err(Error::Invalid(what));
            }
            let to = self.weights.address + tensor.offset;
            let end = (tensor.offset as usize).checked_add(tensor.kind.bytes());
            if end.is_none_or(|end| end > self.weights.bytes) {
                return Err(missing());
            }
            match tensor.kind {
                TensorKind::Vector(len) => {
                    let mut values = vec![0.0f32; len];
                    format.decode(src, &mut values)?;
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    // SAFETY: the range was just seen to be within the allocation.
                    unsafe { self.stream.upload(to, &bytes)? };
                    self.stream.wait()?;
                }
                TensorKind::Matrix(layout) => {
                    let panels = (PIECE / layout.panel_bytes).max(1);
                    for first in (0..layout.panels).step_by(panels) {
                        let n = panels.min(layout.panels - first);
                        let to = to + (first * layout.panel_bytes) as u64;
                        let bytes = n * layout.panel_bytes;
                        pieces.push(Piece { src, layout, first, bytes, to });
                    }
                }
            }
        }
        let largest = pieces.iter().map(|p| p.bytes).max().unwrap_or(0);
        let total = pieces.iter().map(|p| p.bytes as u64).sum();
        let done = AtomicU64::new(0);
        let go_on = |bytes: usize| {
            let bytes = bytes as u64;
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if progress(done, total) { Ok(()) } else { Err(Error::Stopped) }
        };
        go_on(0)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = cores.min(16).min(pieces.len());
        let queue = Mutex::new(pieces.into_iter());
        let next = || queue.lock().ok().and_then(|mut q| q.next());
        let device = &self.device;
        std::thread::scope(|scope| {
            let worker = || -> Result<()> {
                let mut pinned = Pinned::new(device, largest)?;
                let stream = Stream::new(device)?;
                while let Some(piece) = next() {
                    stream.wait()?;
                    let room = pinned.bytes_mut().get_mut(..piece.bytes).ok_or_else(too_large)?;
                    piece.layout.repack(piece.src, piece.first, room)?;
                    // SAFETY: whole panels of a matrix that is within the allocation.
                    unsafe { stream.upload(piece.to, room)? };
                    if let Err(stopped) = go_on(piece.bytes) {
                        stream.wait()?;
                        return Err(stopped);
                    }
                }
                stream.wait()
            };
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
            let mut result = Ok(());
            for handle in handles {
                let done = handle.join().unwrap_or_else(|_| {
                    Err(Error::Invalid("a worker panicked while loading".to_string()))
                });
                result = result.and(done);
            }
            result
        })
    }

    /// Sends up the sines and cosines of rotary angles.
    fn tabulate(&self, ropes: &[RopeTable], context: usize, weights: &dyn Weights) -> Result<()> {
        for table in ropes {
            let rope = &table.rope;
            let mut factors = vec![1.0f32; rope.dim / 2];
            if let Some((_, name)) = &table.factors {
                let gone = || Error::Invalid(format!("the tensor {} is gone", quoted(name)));
                let (format, _) = weights.find(name).ok_or_else(gone)?;
                format.decode(&weights.bytes(name).ok_or_else(gone)?, &mut factors)?;
            }
            let mut bytes = Vec::new();
            let room = context.checked_mul(rope.dim).and_then(|n| n.checked_mul(4));
            let room = room.ok_or_else(too_large)?;
            bytes.try_reserve_exact(room).map_err(|_| too_large())?;
            for position in 0..context {
                for (pair, &factor) in factors.iter().enumerate() {
                    let (sin, cos) = rope.angle(position as u32, pair, factor).sin_cos();
                    // What turns is scaled as well, all at once.
                    let gain = f64::from(rope.gain);
                    bytes.extend_from_slice(&((cos * gain) as f32).to_le_bytes());
                    bytes.extend_from_slice(&((sin * gain) as f32).to_le_bytes());
                }
            }
            if table.offset + bytes.len() > self.tables.bytes {
                return Err(too_large());
            }
            // SAFETY: within the allocation.
            unsafe { self.stream.upload(self.tables.address + table.offset as u64, &bytes)? };
            self.stream.wait()?;
        }
        Ok(())
    }

    /// Captures the step over one row that goes on from the last sampled token.
    fn record(&mut self) -> Result<()> {
        let holds = |r: &Ready| r.program.plan.limits().outs >= 1;
        let Some(index) = self.programs.iter().position(holds) else { return Ok(()) };
        if !self.programs[index].launches.iter().any(|(l, _)| l.kernel == Kernel::Pick) {
            return Ok(());
        }
        set_rows(&mut self.programs[index], 1, 1);
        let graph = self.stream.capture(|| self.launch(index, 1, 1))?;
        self.graph = Some(graph);
        Ok(())
    }

    /// Nodes of the captured step, and how many of them are kernels: all must be, or something
    /// crosses.
    ///
    /// # Errors
    /// When the driver cannot say.
    pub fn graph_nodes(&self) -> Result<Option<(usize, usize)>> {
        self.graph.as_ref().map(Graph::nodes).transpose()
    }

    /// Bytes of device memory that can be allocated now.
    ///
    /// # Errors
    /// When the driver cannot say.
    pub fn free_memory(&self) -> Result<u64> {
        Ok(self.device.memory()?.0)
    }

    /// Puts the launches of a program into the stream. Rows must have been set.
    fn launch(&self, index: usize, rows: usize, outs: usize) -> Result<()> {
        let Some(ready) = self.programs.get(index) else { return Ok(()) };
        for (launch, function) in &ready.launches {
            let n = if launch.lead == Lead::Outs { outs } else { rows };
            if n == 0 {
                continue;
            }
            let (s, on) = (&launch.shape, &self.stream);
            // SAFETY: parameters are those of the kernel's own kind, and their addresses were made
            // from this session's allocations, which the plan's verifier has seen to be large enough
            // for as many rows as were checked.
            let done = unsafe {
                match &launch.parameters {
                    Parameters::Gemv(p) => function.launch(s, &**p, on),
                    Parameters::Gemm(p) => function.launch(s, &**p, on),
                    Parameters::Rows(p) => function.launch(s, &**p, on),
                    Parameters::Attend(p) => function.launch(s, p, on),
                    Parameters::Sample(p) => function.launch(s, p, on),
                }
            };
            done.map_err(|e| named(e, launch))?;
        }
        Ok(())
    }

    /// Whether every row is within the limits.
    fn check(&self, input: &StepInput<'_>) -> Result<()> {
        let limits = *self.limits();
        let rows = input.tokens.len();
        let fail = |what: String| Err(Error::Invalid(format!("step: {what}")));
        if rows == 0 || rows > limits.rows {
            return fail(format!("{rows} rows, planned for 1 to {}", limits.rows));
        }
        if input.positions.len() != rows || input.slots.len() != rows {
            return fail(format!("{rows} rows need as many positions and slots"));
        }
        let outs = input.outs.len();
        if outs > limits.outs {
            return fail(format!("{outs} rows with logits, planned for {}", limits.outs));
        }
        if input.outs.windows(2).any(|w| w[0] >= w[1])
            || input.outs.last().is_some_and(|&r| r as usize >= rows)
        {
            return fail("rows with logits must ascend and exist".to_string());
        }
        let vocabulary = self.programs.first().map_or(0, |p| p.program.vocabulary);
        for ((&token, &position), &slot) in
            input.tokens.iter().zip(input.positions).zip(input.slots)
        {
            if token as usize >= vocabulary {
                return fail(format!("token {token} is not among {vocabulary}"));
            }
            if slot as usize >= limits.slots {
                return fail(format!("slot {slot} is not among {}", limits.slots));
            }
            if position as usize >= limits.context {
                return Err(Error::Context {
                    context: limits.context,
                    what: format!("position {position}"),
                    wants: (position as usize).saturating_add(1),
                });
            }
        }
        Ok(())
    }

    /// Refuses to go on after the device failed, and remembers that it did.
    fn alive<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some(why) = &self.dead {
            let what = format!("the session ended when the device failed: {why}");
            return Err(Error::Device { call: "step".to_string(), what });
        }
        let result = self.device.bind().and_then(|()| run(self));
        if let Err(Error::Device { call, what }) = &result {
            self.dead = Some(format!("{call}: {what}"));
        }
        result
    }

    fn replay(&mut self, input: &StepInput<'_>) -> Result<()> {
        let (rows, outs) = (input.tokens.len(), input.outs.len());
        let holds = |r: &Ready| {
            let limits = r.program.plan.limits();
            rows <= limits.rows && outs <= limits.outs
        };
        let Some(index) = self.programs.iter().position(holds) else {
            return Err(Error::Invalid("no program holds this step".to_string()));
        };
        self.state.sampled.clear();
        (self.state.program, self.state.rows, self.state.outs) = (index, rows, outs);
        // Lists go into staging one after the other, and from there to their places.
        let b = self.bases;
        let lists = [
            (b.tokens, input.tokens),
            (b.positions, input.positions),
            (b.slots, input.slots),
            (b.outs, input.outs),
        ];
        let mut rest = self.staging.bytes_mut();
        for (to, list) in lists {
            let Some((part, more)) = rest.split_at_mut_checked(list.len() * 4) else {
                return Err(too_large());
            };
            for (bytes, word) in part.chunks_exact_mut(4).zip(list) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            // SAFETY: the lists have room for as many rows as were checked.
            unsafe { self.stream.upload(to, part)? };
            rest = more;
        }
        self.traffic.bytes_in += (3 * rows + outs) as u64 * 4;
        if let Some((note, parameters)) = &mut self.note {
            parameters.rows = rows as u32;
            let shape = Shape { grid: (1, 1), block: 256, shared: 0, early: false };
            // SAFETY: the history has a word for each slot and position, which were checked.
            unsafe { note.launch(&shape, parameters, &self.stream)? };
        }
        if let Some(ready) = self.programs.get_mut(index) {
            set_rows(ready, rows, outs);
        }
        self.launch(index, rows, outs)?;
        self.stream.wait()?;
        self.traffic.steps += 1;
        // The graph was captured for one row; its parameters are its own.
        let samples = self.programs[index].launches.iter().any(|(l, _)| l.kernel == Kernel::Pick);
        let Some(&last) = input.outs.last().filter(|_| samples) else { return Ok(()) };
        let last = last as usize;
        self.state.last = (input.positions[last], input.slots[last]);
        if outs == 1 {
            self.state.sampled.push(self.result.word(0));
        } else {
            let bytes = self.staging.bytes_mut().get_mut(..outs * 4).ok_or_else(too_large)?;
            // SAFETY: there is a word for each row with logits.
            unsafe { self.stream.download(bytes, self.bases.sampled)? };
            let words = bytes.as_chunks().0.iter().map(|w| u32::from_le_bytes(*w));
            self.state.sampled.extend(words);
        }
        self.traffic.bytes_out += outs as u64 * 4;
        if let Some(bad) = self.state.sampled.iter().position(|&t| t == NO_TOKEN) {
            let row = input.outs.get(bad).map_or(0, |&r| r as usize);
            let position = input.positions.get(row).map_or(0, |&p| p as usize);
            self.state.sampled.clear();
            return Err(Error::NonFinite { step: self.traffic.steps, position });
        }
        Ok(())
    }
}

/// Pieces of matrices on their way up.
struct Piece<'a> {
    src: &'a [u8],
    layout: super::layout::Layout,
    first: usize,
    bytes: usize,
    to: u64,
}

fn set_rows(ready: &mut Ready, rows: usize, outs: usize) {
    for (launch, _) in &mut ready.launches {
        let n = if launch.lead == Lead::Outs { outs } else { rows };
        launch.set_rows(n as u32);
    }
}

/// An error of a launch, with the launch.
fn named(error: Error, launch: &Launch) -> Error {
    match error {
        Error::Device { call, what } => {
            let call = format!("{call} of {:?} (group {})", launch.kernel, launch.group);
            Error::Device { call, what }
        }
        other => other,
    }
}

type Functions = BTreeMap<Option<Kernel>, Function>;

/// All kernels, each allowed the shared memory it may be given. The kernel without a name of its own
/// is the one that notes tokens.
fn kernels(backend: &CudaBackend, device: &Device) -> Result<(Vec<Module>, Functions)> {
    use super::layout::Product::*;
    let products = [
        (P8, c"gemv_8_0", c"gemm_8_0"),
        (P4, c"gemv_4_0", c"gemm_4_0"),
        (P2, c"gemv_2_0", c"gemm_2_0"),
        (P1, c"gemv_1_0", c"gemm_1_0"),
        (P21, c"gemv_2_1", c"gemm_2_1"),
        (P41, c"gemv_4_1", c"gemm_4_1"),
        (P42, c"gemv_4_2", c"gemm_4_2"),
        (F32, c"gemv_f32", c"gemm_f32"),
        (F16, c"gemv_f16", c"gemm_f16"),
        (Bf16, c"gemv_bf16", c"gemm_bf16"),
    ];
    // Kernels have a few KiB of their own.
    let most = device.block_shared.saturating_sub(4 << 10);
    let (mut modules, mut functions) = (Vec::new(), BTreeMap::new());
    for cubin in &backend.cubins.cubins {
        let module = Module::load(device, cubin.bytes)?;
        match cubin.name {
            "gemv" => {
                for (product, name, _) in products {
                    functions.insert(Some(Kernel::Gemv(product)), module.function(name, most)?);
                }
            }
            "gemm" => {
                for (product, _, name) in products {
                    let shared = gemm_shared(product) as u32;
                    functions.insert(Some(Kernel::Gemm(product)), module.function(name, shared)?);
                }
            }
            "rows" => {
                functions.insert(Some(Kernel::Rows), module.function(c"rows", most)?);
            }
            "attend" => {
                functions.insert(Some(Kernel::Attend), module.function(c"attend", most)?);
            }
            _ => {
                functions.insert(Some(Kernel::Scan), module.function(c"scan", 0)?);
                functions.insert(Some(Kernel::Pick), module.function(c"pick", 0)?);
                functions.insert(None, module.function(c"note", 0)?);
            }
        }
        modules.push(module);
    }
    Ok((modules, functions))
}

fn function(functions: &Functions, kernel: Option<Kernel>) -> Result<Function> {
    let found = functions.get(&kernel).copied();
    found.ok_or_else(|| Error::Unsupported(format!("CUDA: there is no kernel {kernel:?}")))
}

fn too_large() -> Error {
    Error::Plan("its sizes overflow".to_string())
}

fn size(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| too_large())
}

/// Programs of a session share weights and caches, so they must agree on both.
fn check_programs(programs: &[Program]) -> Result<()> {
    let agree = programs.windows(2).all(|w| {
        let (a, b) = (w[0].plan.limits(), w[1].plan.limits());
        let same = |a: &Tensor, b: &Tensor| a.name == b.name && a.offset == b.offset;
        w[0].tensors.len() == w[1].tensors.len()
            && w[0].tensors.iter().zip(&w[1].tensors).all(|(a, b)| same(a, b))
            && w[0].ropes == w[1].ropes
            && w[0].plan.bytes().kv == w[1].plan.bytes().kv
            && (a.context, a.slots) == (b.context, b.slots)
            && a.rows <= b.rows
            && a.outs <= b.outs
    });
    if agree {
        return Ok(());
    }
    Err(Error::Invalid("the programs are not of one graph, smallest first".to_string()))
}

/// Refuses before anything is allocated.
fn check_memory(device: &Device, b: &Bytes, work: u64, limits: &Limits) -> Result<()> {
    // What the driver takes for itself as kernels are loaded and graphs are made.
    const RESERVE: u64 = 256 << 20;
    let has = device.memory()?.0.saturating_sub(RESERVE);
    let needs = b.total().saturating_sub(b.workspace).saturating_add(work);
    if needs <= has {
        return Ok(());
    }
    let rest = Size(needs.saturating_sub(b.weights).saturating_sub(b.kv));
    let (weights, kv, context) = (Size(b.weights), Size(b.kv), limits.context);
    // What is not weights grows with the context, or nearly so: nine tenths of what fits.
    let (room, grows) = (has.saturating_sub(b.weights), needs.saturating_sub(b.weights));
    let fits = u128::from(room / 10 * 9) * context as u128 / u128::from(grows.max(1));
    let hint = match fits {
        0..32 => "no context is small enough for this device".to_string(),
        fits => format!("try --ctx {}", fits / 32 * 32),
    };
    let what = format!("weights {weights}, KV {kv} at context {context}, rest {rest}");
    Err(Error::Memory { what, needs, has, hint })
}

impl Session for CudaSession {
    fn limits(&self) -> &Limits {
        // `load` refuses an empty list.
        static NONE: Limits = Limits { rows: 0, outs: 0, slots: 0, context: 0 };
        self.programs.last().map_or(&NONE, |p| p.program.plan.limits())
    }

    fn run(&mut self, input: &StepInput<'_>) -> Result<()> {
        self.check(input)?;
        let _span = tracing::debug_span!("step", rows = input.tokens.len()).entered();
        self.alive(|s| s.replay(input))
    }

    fn step(&mut self) -> Result<u32> {
        let _span = tracing::debug_span!("step", rows = 1).entered();
        if self.state.sampled.is_empty() {
            return Err(Error::Invalid("nothing was sampled yet".to_string()));
        }
        let (position, slot) = self.state.last;
        let context = self.limits().context;
        if position as usize + 1 >= context {
            let what = format!("position {}", u64::from(position) + 1);
            return Err(Error::Context { context, what, wants: context.saturating_mul(2) });
        }
        let token = self.alive(|s| {
            let Some(graph) = &s.graph else {
                return Err(Error::Invalid("the graph does not sample".to_string()));
            };
            graph.launch(&s.stream)?;
            s.stream.wait()?;
            Ok(s.result.word(0))
        })?;
        self.traffic.steps += 1;
        self.traffic.bytes_out += 4;
        let holds = |r: &Ready| r.program.plan.limits().outs >= 1;
        self.state.program = self.programs.iter().position(holds).unwrap_or(0);
        (self.state.rows, self.state.outs, self.state.last) = (1, 1, (position + 1, slot));
        self.state.sampled.clear();
        if token == NO_TOKEN {
            let position = position as usize + 1;
            return Err(Error::NonFinite { step: self.traffic.steps, position });
        }
        self.state.sampled.push(token);
        Ok(token)
    }

    fn sampled(&self) -> &[u32] {
        &self.state.sampled
    }

    fn set_sampler(&mut self, sampler: &Sampler) -> Result<()> {
        sampler.check()?;
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let s = SamplerState {
            temperature: sampler.temperature,
            top_p: sampler.top_p,
            min_p: sampler.min_p,
            penalty: sampler.repeat_penalty,
            top_k: small(sampler.top_k),
            last_n: small(sampler.repeat_last_n),
            seed: sampler.seed,
            draws: 0,
        };
        self.alive(|session| {
            let mut bytes = [0u8; size_of::<SamplerState>()];
            let floats = [s.temperature, s.top_p, s.min_p, s.penalty].map(f32::to_bits);
            let words = floats.into_iter().chain([s.top_k, s.last_n]);
            let long = [s.seed, s.draws].into_iter().flat_map(u64::to_le_bytes);
            let all = words.flat_map(u32::to_le_bytes).chain(long);
            bytes.iter_mut().zip(all).for_each(|(to, from)| *to = from);
            // SAFETY: the state has room for a sampler.
            unsafe { session.stream.upload(session.bases.sampler, &bytes)? };
            session.stream.wait()
        })
    }

    fn peek(&mut self, output: usize) -> Option<Vec<f32>> {
        let ready = self.programs.get(self.state.program)?;
        let plan = &ready.program.plan;
        let graph = plan.graph();
        let id = origin(graph, *graph.outputs().get(output)?);
        let ty = graph.ty(id);
        let buffer = plan.place(id).filter(|_| ty.dtype == DType::F32)?;
        let base = match buffer.role {
            Role::Scratch => self.bases.scratch,
            Role::Logits => self.bases.logits,
            _ => return None,
        };
        let rows = if ty.lead == Lead::Outs { self.state.outs } else { self.state.rows };
        let mut bytes = vec![0u8; rows * ty.width() * 4];
        if !bytes.is_empty() {
            self.device.bind().ok()?;
            // SAFETY: the plan placed as many rows there.
            unsafe { self.stream.download(&mut bytes, base + buffer.offset).ok()? };
        }
        self.traffic.bytes_out += bytes.len() as u64;
        Some(bytes.as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect())
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }
}

impl Drop for CudaSession {
    fn drop(&mut self) {
        // What still runs must end before its memory goes.
        if self.device.bind().is_ok() {
            let _ = self.stream.wait();
        }
    }
}
