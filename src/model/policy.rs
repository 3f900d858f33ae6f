//! Which tensor gets how many bits, where a model is brought to fewer of them.

use super::format::Format;

/// What tensors are to become.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The format of most.
    pub main: Format,
    /// Whether the head and what writes to the residual get it as well.
    pub pure: bool,
    /// Whether the embedding is the head as well.
    pub tied: bool,
}

impl Policy {
    /// The format for bits of 1, 2, 4 or 8 a weight, roughly.
    pub fn of_bits(bits: u32) -> Option<Format> {
        match bits {
            1 => Some(Format::Q1_0),
            2 => Some(Format::Q2_K),
            4 => Some(Format::Q4_K),
            8 => Some(Format::Q8_0),
            _ => None,
        }
    }

    /// The format that a tensor is to have. Names are those of GGUF files.
    pub fn format(&self, name: &str, format: Format, dims: &[usize]) -> Format {
        fitting(self.wanted(name, format, dims), dims)
    }

    /// The format that a tensor is wanted in, whether or not its rows fit.
    pub fn wanted(&self, name: &str, format: Format, dims: &[usize]) -> Format {
        let kept = dims.len() < 2
            || !name.ends_with(".weight")
            || name.contains("_norm.")
            // It picks experts.
            || name.ends_with("ffn_gate_inp.weight");
        let head = name == "output.weight" || self.tied && name == "token_embd.weight";
        if kept {
            format
        } else if head && !self.pure && bits(self.main) < bits(Format::Q6_K) {
            // An error in the head goes straight to the logits.
            Format::Q6_K
        } else if self.main == Format::Q2_K && !self.pure && writes_residual(name) {
            // So does, through all layers that follow, one in what layers add.
            Format::Q3_K
        } else {
            self.main
        }
    }
}

/// Whether a layer's result comes straight out of this matrix, or is a mean of what does.
fn writes_residual(name: &str) -> bool {
    ["attn_v.weight", "attn_output.weight", "ffn_down.weight"].iter().any(|end| name.ends_with(end))
}

/// The wanted format or, where a tensor's rows are not whole blocks of it, the least of those with
/// blocks of 32 that has more bits; and F16 where nothing else fits.
fn fitting(wanted: Format, dims: &[usize]) -> Format {
    const LADDER: [Format; 4] = [Format::IQ4_NL, Format::Q5_0, Format::Q5_1, Format::Q8_0];
    let cols = dims.last().copied().unwrap_or(1);
    let fits = |format: &Format| format.row_bytes(cols).is_some();
    let next = LADDER.into_iter().filter(|f| bits(*f) > bits(wanted)).find(fits);
    if fits(&wanted) { wanted } else { next.unwrap_or(Format::F16) }
}

/// Bits of 256 elements.
fn bits(format: Format) -> usize {
    8 * 256 / format.block_len() * format.block_bytes()
}
