//! Stop strings: found wherever the stream is cut, and nothing held back that need not be.

use gllm_kernels::text::Stops;

use crate::common::Random;

fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
    let mut s = Stops::new(stops).unwrap();
    let mut shown = String::new();
    for piece in pieces {
        let found = s.push(piece);
        shown.push_str(found.text);
        if found.stopped {
            assert_eq!(s.push("more").text, "");
            assert_eq!(s.finish(), "");
            return (shown, true);
        }
    }
    shown.push_str(s.finish());
    (shown, false)
}

/// The definition: the first end of any stop, and of those that end there the longest.
fn slow(stops: &[&str], text: &str) -> (String, bool) {
    for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
        if let Some(n) = stops.iter().filter(|s| text[..end].ends_with(**s)).map(|s| s.len()).max()
        {
            return (text[..end - n].into(), true);
        }
    }
    (text.into(), false)
}

#[test]
fn every_split_gives_the_same() {
    let text = "one\n\nUser: étwo END. STOPPED";
    let sets: [&[&str]; 7] = [
        &["\n\nUser:"],
        &["STOP", "STOPPED"],
        &["étw"],
        &["E", "END"],
        &["none"],
        &[],
        &["ND.", "END."],
    ];
    for stops in sets {
        let want = slow(stops, text);
        for (i, _) in text.char_indices() {
            for (j, _) in text.char_indices().filter(|&(j, _)| j >= i) {
                assert_eq!(run(stops, &[&text[..i], &text[i..j], &text[j..]]), want, "{stops:?}");
            }
        }
    }
}

#[test]
fn random_stops_in_random_text() {
    let mut random = Random::new(5);
    let mut any = |most: usize| -> String {
        (0..1 + random.below(most)).map(|_| random.one(&['a', 'b', 'é'])).collect()
    };
    for _ in 0..4000 {
        let stops = [any(4), any(6)];
        let stops = [stops[0].as_str(), stops[1].as_str()];
        let text = any(30);
        let whole = slow(&stops, &text);
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        assert_eq!(run(&stops, &[&text]), whole, "{stops:?} {text}");
        assert_eq!(run(&stops, &chars), whole, "{stops:?} {text}");
    }
}

#[test]
fn only_what_may_become_a_stop_is_held_back() {
    let mut s = Stops::new(&["</s>"]).unwrap();
    assert_eq!(s.push("a<b").text, "a<b");
    assert_eq!(s.push("c</").text, "c");
    assert_eq!(s.push("p").text, "</p");
    assert_eq!(s.push("x</s").text, "x");
    assert_eq!(s.finish(), "</s");
    assert_eq!(s.push("y").text, "y");
}

#[test]
fn what_cannot_be_a_stop_is_refused() {
    assert!(Stops::new(&[""]).is_err());
    assert!(Stops::new(&vec!["x"; 65]).is_err());
    assert!(Stops::new(&["x".repeat(5000)]).is_err());
}
