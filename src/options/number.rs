//! Integers and booleans in every spelling Go's `strconv` accepts.

/// The integer a text spells: decimal, `0x`, `0o`, a leading `0` (octal) or `0b`, with an optional sign and with underscores
/// between digits or after the base prefix. `None` when it spells none or does not fit.
pub(super) fn int(text: &str) -> Option<i64> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits, prefixed) = base(unsigned);
    let plain = without_underscores(digits, prefixed)?;
    // `from_str_radix` would take a second sign.
    if !plain.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let signed = if negative { format!("-{plain}") } else { plain };
    i64::from_str_radix(&signed, radix).ok()
}

/// The radix, what is left behind its prefix, and whether there was a prefix (an underscore may follow one).
fn base(text: &str) -> (u32, &str, bool) {
    const PREFIXES: [(&str, u32); 6] = [("0x", 16), ("0X", 16), ("0o", 8), ("0O", 8), ("0b", 2), ("0B", 2)];
    for (prefix, radix) in PREFIXES {
        if let Some(digits) = text.strip_prefix(prefix) {
            return (radix, digits, true);
        }
    }
    match text.strip_prefix('0') {
        Some(digits) if !digits.is_empty() => (8, digits, true),
        _ => (10, text, false),
    }
}

/// Takes the underscores out if each stands between digits, or between a base prefix and a digit.
fn without_underscores(digits: &str, prefixed: bool) -> Option<String> {
    let misplaced = digits.ends_with('_') || digits.contains("__") || (!prefixed && digits.starts_with('_'));
    (!misplaced && !digits.is_empty()).then(|| digits.replace('_', ""))
}

/// The boolean a text spells: `1 t T true TRUE True` or `0 f F false FALSE False`.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_read_in_every_spelling_of_go() {
        for (text, number) in [
            ("0", 0),
            ("60", 60),
            ("+7", 7),
            ("-7", -7),
            ("0x1F", 31),
            ("0X1f", 31),
            ("-0x10", -16),
            ("0o17", 15),
            ("0O17", 15),
            ("017", 15),
            ("00", 0),
            ("0b101", 5),
            ("0B101", 5),
            ("1_000", 1000),
            ("0x_1_f", 31),
            ("0_17", 15),
            ("0b_1", 1),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(int(text), Some(number), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_no_integer() {
        for text in [
            "",
            "-",
            "+",
            "--1",
            "+-1",
            "1.5",
            "1e3",
            " 1",
            "1 ",
            "abc",
            "08",
            "0o8",
            "0b2",
            "0x",
            "0xg",
            "1__0",
            "_1",
            "1_",
            "0x1_",
            "0x__1",
            "0b",
            "1a",
            "9223372036854775808",
            "٣",
        ] {
            assert_eq!(int(text), None, "{text:?}");
        }
    }

    #[test]
    fn booleans_have_exactly_twelve_spellings() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(boolean(text), Some(true), "{text}");
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(boolean(text), Some(false), "{text}");
        }
        for text in ["", "yes", "no", "on", "off", "tRUE", "2", " true", "10"] {
            assert_eq!(boolean(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".*") {
            let _ = int(&text);
            let _ = boolean(&text);
        }

        #[test]
        fn every_integer_round_trips(number: i64) {
            prop_assert_eq!(int(&number.to_string()), Some(number));
        }
    }
}
