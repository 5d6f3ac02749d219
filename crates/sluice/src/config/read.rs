//! Walks a parsed document and collects all that is wrong with it.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::values::nearest;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line of the file, from 1; `None` when it is not about one.
    pub line: Option<usize>,
    /// `section.key`, or empty when it is about the whole file.
    pub key: String,
    /// What is wrong and what to do.
    pub what: String,
}

impl Problem {
    pub(super) fn new(key: &str, what: &str) -> Self {
        Self { line: None, key: key.to_owned(), what: what.to_owned() }
    }
}

/// Why a configuration is refused: every problem, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file; `None` when the problem is in what file and flags say together.
    pub file: Option<String>,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_deref().unwrap_or("configuration");
        for (i, problem) in self.problems.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { "\n" })?;
            f.write_str(file)?;
            if let Some(line) = problem.line {
                write!(f, ", line {line}")?;
            }
            match problem.key.as_str() {
                "" => write!(f, ": {}", problem.what)?,
                key => write!(f, ": {key}: {}", problem.what)?,
            }
        }
        Ok(())
    }
}

impl ConfigError {
    pub(super) fn of(file: Option<&str>, problems: Vec<Problem>) -> Result<(), Self> {
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Self { file: file.map(ToOwned::to_owned), problems }),
        }
    }

    pub(super) fn unreadable(file: &str, error: &std::io::Error) -> Self {
        let what = if error.kind() == std::io::ErrorKind::NotFound {
            "there is no such file: check the path, or write one with `sluice config example`"
                .to_owned()
        } else {
            format!("cannot be read: {error}")
        };
        Self { file: Some(file.to_owned()), problems: vec![Problem::new("", &what)] }
    }
}

type Entries<'d> = Vec<(&'d str, &'d Spanned<DeValue<'d>>, usize)>;

/// A file while it is read.
pub(super) struct Document<'d> {
    file: &'d str,
    root: Spanned<DeTable<'d>>,
    lines: Lines,
    problems: Vec<Problem>,
    sections: Vec<&'static str>,
    known: Vec<(&'static str, &'static str)>,
}

impl<'d> Document<'d> {
    pub(super) fn parse(file: &'d str, text: &'d str) -> Result<Self, ConfigError> {
        let lines = Lines::of(text);
        let root = DeTable::parse(text).map_err(|error| ConfigError {
            file: Some(file.to_owned()),
            problems: vec![Problem {
                line: error.span().map(|span| lines.at(span.start)),
                key: String::new(),
                what: format!("this is not TOML: {}", error.message()),
            }],
        })?;
        let (problems, sections, known) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { file, root, lines, problems, sections, known })
    }

    /// Checks `version = 1`.
    pub(super) fn version(&mut self) {
        let found =
            entries(self.root.get_ref(), &self.lines).into_iter().find(|e| e.0 == "version");
        let what = match found.map(|(_, value, line)| (value.get_ref().as_integer(), line)) {
            Some((Some(number), _)) if number.as_str() == "1" => return,
            Some((Some(number), line))
                if number.as_str() == "0" || number.as_str().starts_with('-') =>
            {
                (Some(line), "the version must be 1".to_owned())
            }
            Some((Some(number), line)) => (
                Some(line),
                format!(
                    "this file is of version {number}, and this Sluice reads version 1: update Sluice"
                ),
            ),
            Some((None, line)) => (Some(line), "the version must be the number 1".to_owned()),
            None => (None, "is missing: write `version = 1` on the first line".to_owned()),
        };
        self.problems.push(Problem { line: what.0, key: "version".to_owned(), what: what.1 });
    }

    /// Starts to read a section; one that the file does not have is empty.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'_> {
        self.sections.push(name);
        let found = entries(self.root.get_ref(), &self.lines).into_iter().find(|e| e.0 == name);
        let entries = match found {
            None => Vec::new(),
            Some((_, value, line)) => match value.get_ref().as_table() {
                Some(table) => entries(table, &self.lines),
                None => {
                    let what = format!("must be a section: write `[{name}]` on a line of its own");
                    self.problems.push(Problem { line: Some(line), key: name.to_owned(), what });
                    Vec::new()
                }
            },
        };
        let (known, problems) = (&mut self.known, &mut self.problems);
        Section { name, entries, lines: &self.lines, known, problems }
    }

    /// Refuses what no section asked for, and gives the verdict.
    pub(super) fn finish(mut self) -> Result<(), ConfigError> {
        let mut unknown = Vec::new();
        for (name, value, line) in entries(self.root.get_ref(), &self.lines) {
            match self.sections.iter().find(|section| **section == name) {
                Some(section) => {
                    let Some(table) = value.get_ref().as_table() else { continue };
                    for (key, _, line) in entries(table, &self.lines) {
                        if !self.known.contains(&(section, key)) {
                            unknown.push(self.unknown_key(section, key, line));
                        }
                    }
                }
                None if name == "version" => {}
                None => unknown.push(self.unknown_section(name, value.get_ref(), line)),
            }
        }
        self.problems.append(&mut unknown);
        self.problems.sort_by_key(|problem| problem.line);
        ConfigError::of(Some(self.file), self.problems)
    }

    fn unknown_key(&self, section: &str, key: &str, line: usize) -> Problem {
        let keys = self.known.iter().filter(|(s, _)| *s == section).map(|(_, key)| *key);
        let elsewhere = self.known.iter().find(|(_, known)| *known == key);
        let advice = match (nearest(key, keys.clone()), elsewhere) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, Some((other, _))) => format!("`{key}` belongs in [{other}]"),
            (None, None) => {
                format!("[{section}] may have: {}", keys.collect::<Vec<_>>().join(", "))
            }
        };
        let what = format!("there is no such key; {advice}");
        Problem { line: Some(line), key: format!("{section}.{key}"), what }
    }

    fn unknown_section(&self, name: &str, value: &DeValue<'_>, line: usize) -> Problem {
        let sections = self.sections.iter().copied();
        let advice =
            match (nearest(name, sections), self.known.iter().find(|(_, key)| *key == name)) {
                (_, Some((section, _))) if !value.is_table() => {
                    format!("`{name}` belongs below a line `[{section}]`")
                }
                (Some(near), _) => format!("did you mean `[{near}]`?"),
                (None, _) => format!("there are [{}]", self.sections.join("], [")),
            };
        let kind = if value.is_table() { "section" } else { "key outside the sections" };
        let what = format!("there is no such {kind}; {advice}");
        Problem { line: Some(line), key: name.to_owned(), what }
    }
}

/// One section while it is read. Each key is asked for once; what stays wrong or unasked becomes a
/// problem.
pub(super) struct Section<'d> {
    name: &'static str,
    entries: Entries<'d>,
    lines: &'d Lines,
    known: &'d mut Vec<(&'static str, &'static str)>,
    problems: &'d mut Vec<Problem>,
}

impl Section<'_> {
    /// Sets `into` to what `parse` makes of the value, if the key is there.
    pub(super) fn set<T>(
        &mut self,
        key: &'static str,
        into: &mut T,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) {
        self.known.push((self.name, key));
        let Some((_, value, line)) = self.entries.iter().find(|entry| entry.0 == key) else {
            return;
        };
        match parse(value.get_ref()) {
            Ok(value) => *into = value,
            Err(what) => {
                let key = format!("{}.{key}", self.name);
                self.problems.push(Problem { line: Some(*line), key, what });
            }
        }
    }

    /// Like [`Self::set`] for a key that may be absent.
    pub(super) fn maybe<T>(
        &mut self,
        key: &'static str,
        into: &mut Option<T>,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) {
        self.set(key, into, |value| parse(value).map(Some));
    }

    /// Sets `into` to a list of texts, each parsed; tells whether the key is there.
    pub(super) fn list<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        into: &mut Vec<T>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> bool {
        self.known.push((self.name, key));
        let Some((_, value, line)) = self.entries.iter().find(|entry| entry.0 == key) else {
            return false;
        };
        let Some(array) = value.get_ref().as_array() else {
            let what = format!(
                "must be a list of texts, such as [\"..\", \"..\"], not {}",
                kind(value.get_ref())
            );
            let key = format!("{}.{key}", self.name);
            self.problems.push(Problem { line: Some(*line), key, what });
            return true;
        };
        let mut values = Vec::with_capacity(array.len());
        for (i, item) in array.iter().enumerate() {
            match text(&parse)(item.get_ref()) {
                Ok(value) => values.push(value),
                Err(what) => self.problems.push(Problem {
                    line: Some(self.lines.at(item.span().start)),
                    key: format!("{}.{key}[{i}]", self.name),
                    what,
                }),
            }
        }
        *into = values;
        true
    }
}

/// A value that is text, parsed further.
pub(super) fn text<T, E: fmt::Display>(
    parse: impl Fn(&str) -> Result<T, E>,
) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| match value.as_str() {
        Some(text) => parse(text).map_err(|e| e.to_string()),
        None => Err(format!("must be text in quotes, not {}", kind(value))),
    }
}

/// A whole number within bounds; text of digits is accepted too, for numbers beyond 64 bits.
pub(super) fn number<T>(min: T, max: T) -> impl Fn(&DeValue<'_>) -> Result<T, String>
where
    T: TryFrom<u128> + PartialOrd + fmt::Display + Copy,
{
    move |value| {
        let digits = decimal(value).or(value.as_str()).unwrap_or_default();
        let number = digits.replace('_', "").parse::<u128>().ok().and_then(|n| T::try_from(n).ok());
        number
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| format!("must be {}, not {}", span(min, max), kind(value)))
    }
}

/// True or false.
pub(super) fn flag(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("must be true or false, not {}", kind(value)))
}

fn span<T: fmt::Display>(min: T, max: T) -> String {
    let max = max.to_string();
    // A bound of more digits is the type's, and helps nobody.
    if max.len() > 10 {
        format!("a whole number of at least {min}")
    } else {
        format!("a whole number from {min} to {max}")
    }
}

/// A size or rate: text with a unit, or a plain number.
pub(super) fn quantity<T, E: fmt::Display>(
    parse: impl Fn(&str) -> Result<T, E>,
) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| match decimal(value) {
        Some(digits) => parse(digits).map_err(|e| e.to_string()),
        None => text(&parse)(value),
    }
}

fn decimal<'v>(value: &'v DeValue<'_>) -> Option<&'v str> {
    value.as_integer().filter(|integer| integer.radix() == 10).map(|integer| integer.as_str())
}

fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {:?}", text.as_ref()),
        DeValue::Integer(integer) => format!("the number {integer}"),
        DeValue::Float(float) => format!("the number {float}"),
        DeValue::Boolean(value) => format!("`{value}`"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn entries<'t>(table: &'t DeTable<'t>, lines: &Lines) -> Entries<'t> {
    table
        .iter()
        .map(|(key, value)| (key.get_ref().as_ref(), value, lines.at(key.span().start)))
        .collect()
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}
