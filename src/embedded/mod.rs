//! The model that comes with the crate: a tiny Llama that writes recognisable English.
//!
//! `train.py` beside this file made it; `README.md` says from what.

use crate::Result;
use crate::model::Model;

/// The model file.
pub static TINY: &[u8] = include_bytes!("tiny.gguf");

/// The embedded model.
///
/// # Errors
/// Never in a crate that passed its tests.
pub fn tiny() -> Result<Model> {
    Model::from_static("embedded model", TINY)
}
