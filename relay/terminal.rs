//! What people read in a terminal: colours where they are wanted, and nothing that commands it.
//!
//! Values are whatever somebody typed into the CRM, or wrote to it by other ways. Control characters in
//! them could move the cursor, rename the window or hide what stands there, and marks of writing
//! direction could turn it around; so all of them are shown as they are escaped in JSON.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use clap::ColorChoice;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How text is marked.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    is_coloured: bool,
}

impl Style {
    /// As it was asked for; where nothing was said, in colour on a terminal, unless `NO_COLOR` is set to
    /// anything (<https://no-color.org>) or the terminal is `dumb`.
    pub fn of(choice: ColorChoice) -> Style {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Style {
            is_coloured: match choice {
                ColorChoice::Always => true,
                ColorChoice::Never => false,
                ColorChoice::Auto => {
                    std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
                }
            },
        }
    }

    /// A value that is no longer so: red and struck through.
    pub fn was(self, text: &str) -> Cow<'_, str> {
        self.marked("9;31", text)
    }

    /// A value that is so now: green.
    pub fn is(self, text: &str) -> Cow<'_, str> {
        self.marked("32", text)
    }

    /// What begins a block: bold.
    pub fn head(self, text: &str) -> Cow<'_, str> {
        self.marked("1", text)
    }

    /// What is less important: dim.
    pub fn aside(self, text: &str) -> Cow<'_, str> {
        self.marked("2", text)
    }

    /// One value and what became of it; either may be missing.
    pub fn change(self, was: Option<&str>, is: Option<&str>) -> String {
        match (was, is) {
            (Some(was), Some(is)) if self.is_coloured => {
                format!("{} {}", self.was(was), self.is(is))
            }
            (Some(was), Some(is)) => format!("{was} -> {is}"),
            (Some(was), None) => self.was(was).into_owned(),
            (None, Some(is)) => self.is(is).into_owned(),
            (None, None) => String::new(),
        }
    }

    // https://www.ecma-international.org/publications-and-standards/standards/ecma-48/, 8.3.117
    fn marked(self, code: &str, text: &'_ str) -> Cow<'static, str> {
        match self.is_coloured {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m").into(),
            false => text.to_owned().into(),
        }
    }
}

/// Whether a character does something else than to be seen.
fn is_command(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}')
}

/// A text on one line, in which nothing commands a terminal: `\u001b` is shown for an escape.
pub fn visible(text: &str) -> Cow<'_, str> {
    match text.contains(is_command) {
        true => escaped(text, |c| format!("\\u{:04x}", u32::from(c))).into(),
        false => text.into(),
    }
}

/// The same JSON on one line, in which nothing commands a terminal.
pub fn visible_json(json: &str) -> Cow<'_, str> {
    // a bare control character can only stand between tokens
    let escape = |c: char| match c < ' ' {
        true => " ".to_owned(),
        false => format!("\\u{:04x}", u32::from(c)),
    };
    match json.contains(is_command) {
        true => escaped(json, escape).into(),
        false => json.into(),
    }
}

fn escaped(text: &str, escape: impl Fn(char) -> String) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_command(c) {
            true => escaped.push_str(&escape(c)),
            false => escaped.push(c),
        }
    }
    escaped
}

/// Characters of a value that are shown where it stands beside others.
const SHOWN: usize = 64;

/// So many of them stand before the first that differs.
const BEFORE: usize = 16;

/// A value and what became of it, each cut to what fits on a line, around where they begin to differ.
pub fn shortened(was: Option<&str>, is: Option<&str>) -> (Option<String>, Option<String>) {
    let same = match (was, is) {
        (Some(was), Some(is)) => {
            let pairs = was.chars().zip(is.chars());
            pairs.take_while(|(was, is)| was == is).count()
        }
        _ => 0,
    };
    let cut = |text: &str| {
        let length = text.chars().count();
        if length <= SHOWN {
            return text.to_owned();
        }
        let start = same
            .saturating_sub(BEFORE)
            .min(length.saturating_sub(SHOWN));
        let shown: String = text.chars().skip(start).take(SHOWN).collect();
        let before = if start > 0 { "…" } else { "" };
        let after = if start + SHOWN < length { "…" } else { "" };
        format!("{before}{shown}{after} ({length} characters)")
    };
    (was.map(cut), is.map(cut))
}

/// Done when nobody reads the standard output any more, such as `head`, which has seen enough; never
/// where that cannot be known, as of a file.
#[expect(
    deprecated,
    reason = "its successor is unsafe, and only for descriptors that are not owned"
)]
pub async fn reader_gone() {
    let stdout = std::io::stdout();
    let watched = stdout.as_fd().try_clone_to_owned();
    let watched = watched.and_then(|fd| AsyncFd::with_interest(fd, Interest::ERROR));
    match watched {
        Ok(fd) if fd.ready(Interest::ERROR).await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_value_commands_the_terminal() {
        for (text, shown) in [
            ("plain é 😀 \\n", "plain é 😀 \\n"),
            ("\u{1b}[2J\u{1b}]0;x\u{7}", "\\u001b[2J\\u001b]0;x\\u0007"),
            ("a\nb\r\tc\u{8}", "a\\u000ab\\u000d\\u0009c\\u0008"),
            ("\u{9b}31m\u{7f}", "\\u009b31m\\u007f"),
            ("invoice\u{202e}fdp.exe", "invoice\\u202efdp.exe"),
        ] {
            assert_eq!(visible(text), shown);
        }
        let json = "{\n\t\"a\": \"\u{9b}2J\u{7f}\u{2066}\\u001b\"}";
        let shown = visible_json(json);
        assert_eq!(shown, r#"{  "a": "\u009b2J\u007f\u2066\u001b"}"#);
        let read = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(read(&shown), read(json));
    }

    #[test]
    fn a_long_value_is_cut_around_what_changed_in_it() {
        let text = |middle: &str| format!("{}{middle}{}", "a".repeat(1000), "z".repeat(1000));
        let (was, is) = shortened(Some(&text("old")), Some(&text("new!")));
        let (was, is) = (was.unwrap(), is.unwrap());
        assert_eq!(
            was,
            format!(
                "…{}old{}… (2003 characters)",
                "a".repeat(16),
                "z".repeat(45)
            )
        );
        assert_eq!(
            is,
            format!(
                "…{}new!{}… (2004 characters)",
                "a".repeat(16),
                "z".repeat(44)
            )
        );
        let one = shortened(None, Some(&"b".repeat(65))).1.unwrap();
        assert_eq!(one, format!("{}… (65 characters)", "b".repeat(64)));
        let fits = "c".repeat(64);
        assert_eq!(shortened(Some(&fits), None), (Some(fits.clone()), None));
        // the end of one is what differs
        let (was, is) = shortened(Some(&"d".repeat(100)), Some(&"d".repeat(99)));
        assert_eq!(
            was.unwrap(),
            format!("…{} (100 characters)", "d".repeat(64))
        );
        assert_eq!(is.unwrap(), format!("…{} (99 characters)", "d".repeat(64)));
    }

    #[test]
    fn without_colour_an_arrow_tells_what_became_of_a_value() {
        let plain = Style::of(ColorChoice::Never);
        assert_eq!(plain.change(Some("1"), Some("2")), "1 -> 2");
        let coloured = Style::of(ColorChoice::Always);
        assert_eq!(
            coloured.change(Some("1"), Some("2")),
            "\u{1b}[9;31m1\u{1b}[0m \u{1b}[32m2\u{1b}[0m"
        );
    }
}
