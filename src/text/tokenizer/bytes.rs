//! The bytes that tokens stand for.

use crate::text::vocab::{Kind, SPACE, TokenType, Vocab};

/// The character that byte-level BPE writes for a byte: printable Latin-1 for itself, the rest
/// counted up from U+0100.
pub(super) fn byte_char(byte: u8) -> char {
    let shifted = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => return char::from(byte),
        0..=0x20 => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 0x21,
        0xad => 0x43,
    };
    char::from_u32(0x100 + shifted).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The way back: the byte of each character below U+0144.
pub(super) fn alphabet() -> [Option<u8>; 0x144] {
    let mut out = [None; 0x144];
    for byte in 0..=255 {
        if let Some(slot) = out.get_mut(byte_char(byte) as usize) {
            *slot = Some(byte);
        }
    }
    out
}

/// The byte that a text such as `<0x0A>` stands for.
fn byte_of(text: &[u8]) -> Option<u8> {
    let hex = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    // A sign would pass for a digit below.
    let hex = Some(hex).filter(|h| h.len() == 2 && h.iter().all(u8::is_ascii_hexdigit))?;
    u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
}

pub(super) fn byte_ids(vocab: &Vocab, alphabet: &[Option<u8>]) -> [Option<u32>; 256] {
    let mut out = [None; 256];
    for id in 0..vocab.len() as u32 {
        let text = vocab.text(id).unwrap_or_default();
        let byte = match (vocab.kind(), vocab.token_type(id)) {
            (Kind::Spm, Some(TokenType::Byte)) => byte_of(text),
            (Kind::Bpe, _) if vocab.is_mergeable(id) => single(text, alphabet),
            _ => None,
        };
        if let Some(slot) = byte.and_then(|b| out.get_mut(usize::from(b))) {
            _ = slot.get_or_insert(id);
        }
    }
    out
}

/// The byte of a text that is one character of the alphabet.
fn single(text: &[u8], alphabet: &[Option<u8>]) -> Option<u8> {
    if text.len() > 2 {
        return None;
    }
    let mut chars = std::str::from_utf8(text).ok()?.chars();
    let byte = alphabet.get(chars.next()? as usize).copied().flatten();
    if chars.next().is_none() { byte } else { None }
}

/// Appends what a token contributes to a text.
pub(super) fn piece(vocab: &Vocab, alphabet: &[Option<u8>], id: u32, out: &mut Vec<u8>) {
    let text = vocab.text(id).unwrap_or_default();
    match (vocab.kind(), vocab.token_type(id)) {
        (_, None | Some(TokenType::Control | TokenType::Unknown)) => {}
        (kind, Some(TokenType::UserDefined)) if kind == Kind::Bpe || !vocab.ranked => {
            out.extend_from_slice(text);
        }
        (Kind::Spm, Some(TokenType::Byte)) => match byte_of(text) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(text),
        },
        (Kind::Spm, _) => {
            let mut rest = text;
            while let Some((&first, after)) = rest.split_first() {
                if let Some(after) = rest.strip_prefix(SPACE.as_bytes()) {
                    out.push(b' ');
                    rest = after;
                } else {
                    out.push(first);
                    rest = after;
                }
            }
        }
        (Kind::Bpe, _) => match std::str::from_utf8(text) {
            Err(_) => out.extend_from_slice(text),
            Ok(text) => {
                for c in text.chars() {
                    match alphabet.get(c as usize).copied().flatten() {
                        Some(byte) => out.push(byte),
                        None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_one_to_one() {
        let back = alphabet();
        for byte in 0..=255u8 {
            assert_eq!(back[byte_char(byte) as usize], Some(byte));
        }
        assert_eq!((byte_char(b' '), byte_char(b'\n'), byte_char(0xad)), ('Ġ', 'Ċ', 'Ń'));
        assert_eq!(byte_of(b"<0x0A>"), Some(10));
        assert_eq!((byte_of(b"<0x+A>"), byte_of(b"<0x0>"), byte_of(b"a")), (None, None, None));
    }
}
