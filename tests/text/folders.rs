//! Real tokenizers of folders, where somebody has some.

use gllm_kernels::model::Model;
use gllm_kernels::text::{Encode, Tokenizer};
use std::time::Instant;

/// Folders below `$GLLM_FOLDERS`, each with a model's own `tokenizer.json` and with `ids.json`, a list
/// of texts and the ids that `tokenizers` makes of them (`make.py FOLDER…` writes it).
#[test]
#[ignore = "needs folders with real tokenizers, in $GLLM_FOLDERS"]
fn folder_ids() {
    let folders = std::env::var_os("GLLM_FOLDERS").expect("GLLM_FOLDERS");
    let mut texts = 0;
    for folder in std::fs::read_dir(folders).unwrap().map(|f| f.unwrap().path()) {
        let Ok(wanted) = std::fs::read(folder.join("ids.json")) else { continue };
        let start = Instant::now();
        let t = Tokenizer::of(&Model::open(&folder).unwrap()).unwrap();
        println!("{}: {} tokens, {:?}", folder.display(), t.vocab_size(), start.elapsed());
        let wanted: Vec<(String, Vec<u32>)> = serde_json::from_slice(&wanted).unwrap();
        for (text, ids) in &wanted {
            let got = t.encode(text, Encode { bos: true, special: true }).unwrap();
            assert!(got == *ids, "{}: {text:?}: {got:?}, wanted {ids:?}", folder.display());
            texts += 1;
        }
    }
    assert!(texts > 20, "{texts} texts");
}
