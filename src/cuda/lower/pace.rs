//! How fast a chain of one row asks for its weights.

use super::Chip;
use crate::cuda::abi::Gemv;
use crate::cuda::program::{Launch, Parameters};

/// Says how fast weights are asked for: as fast as can be, they would stand before the numbers that links wait for. No faster than
/// the memory gives them, and the slower the fewer they are, since a link is mostly waiting then: measured best for
/// links of 50 to 660 KiB a block. Behind the last link nobody waits.
pub(super) fn set_pace(chip: &Chip, links: &mut [Launch]) {
    let all = links.len() as f64 * f64::from(chip.processors);
    let Some((_, links)) = links.split_last_mut() else { return };
    let products = links.iter_mut().filter_map(|l| match &mut l.parameters {
        Parameters::Gemv(p) => Some(p),
        _ => None,
    });
    let products: Vec<_> = products.collect();
    let each = products.iter().map(|p| weights(p)).sum::<f64>() / 1024.0 / all;
    let pace = (1.04 * f64::from(chip.kib_cycles)).max(680.0 / each.max(1.0).sqrt()) as u32;
    products.into_iter().for_each(|p| p.pace = pace);
}

/// Bytes of a product's weights.
pub(super) fn weights(p: &Gemv) -> f64 {
    let panels =
        p.first.iter().zip(p.first.iter().skip(1)).map(|(begin, end)| end.saturating_sub(*begin));
    let domains = p.domain.iter().zip(panels).take(p.domains as usize);
    let of = domains.map(|(d, panels)| {
        let parts = d.part.iter().take(d.parts as usize).filter_map(|&m| p.part.get(m as usize));
        f64::from(panels) * parts.map(|m| f64::from(m.panel_bytes)).sum::<f64>()
    });
    of.sum()
}
