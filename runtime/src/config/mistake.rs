//! What is wrong with a configuration, and where.

use super::{describe::Note, node::Noted};
use std::{cell::RefCell, fmt, rc::Rc};

/// One mistake: file, line, column, path and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file's name as it was given.
    pub file: String,
    /// From 1; 0 = the file as a whole.
    pub line: u64,
    /// From 1; 0 = the file as a whole.
    pub column: u64,
    /// Dotted, for example `kubernetes.pod.spec.containers[0].image`; empty = the whole document.
    pub path: String,
    /// What is wrong and what would be right. Never repeats the value of a secret.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// All mistakes of a configuration, in the order of the file; at least one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

/// Where sections put what they find.
#[derive(Debug, Clone)]
pub(super) struct Sink {
    file: Rc<str>,
    found: Rc<RefCell<Vec<Mistake>>>,
    warned: Rc<RefCell<Vec<Mistake>>>,
    notes: Rc<RefCell<Vec<Note>>>,
    /// Files that were read for it.
    pub(super) noted: Noted,
    /// There is no file: readers are only asked what they would read.
    pub(super) describing: bool,
}

impl Sink {
    pub(super) fn new(file: &str) -> Self {
        Self {
            file: file.into(),
            found: Rc::default(),
            warned: Rc::default(),
            notes: Rc::default(),
            noted: Noted::default(),
            describing: false,
        }
    }

    pub(super) fn add(&self, at: (u64, u64), path: &str, message: impl Into<String>) {
        self.found.borrow_mut().push(self.mistake(at, path, message));
    }

    /// What is no mistake, and yet most likely not what is meant.
    pub(super) fn warn(&self, at: (u64, u64), path: &str, message: impl Into<String>) {
        self.warned.borrow_mut().push(self.mistake(at, path, message));
    }

    fn mistake(&self, (line, column): (u64, u64), path: &str, message: impl Into<String>) -> Mistake {
        Mistake { file: self.file.to_string(), line, column, path: path.to_owned(), message: message.into() }
    }

    pub(super) fn note(&self, note: Note) {
        self.notes.borrow_mut().push(note);
    }

    /// What was read so far.
    pub(super) fn notes(&self) -> Vec<Note> {
        self.notes.borrow().clone()
    }

    /// The warnings so far, in the order of the file, each once.
    pub(super) fn warnings(&self) -> Vec<Mistake> {
        let mut warned = self.warned.borrow().clone();
        warned.sort_by(|a, b| (a.line, a.column, &a.path).cmp(&(b.line, b.column, &b.path)));
        warned.dedup();
        warned
    }

    /// The file's name.
    pub(super) fn file(&self) -> String {
        self.file.to_string()
    }

    /// What was found, in the order of the file, each once.
    pub(super) fn finish(&self) -> Result<(), Mistakes> {
        let mut found = self.found.take();
        found.sort_by(|a, b| (a.line, a.column, &a.path).cmp(&(b.line, b.column, &b.path)));
        found.dedup();
        if found.iter().any(|mistake| mistake.path.is_empty()) {
            // Of a document that is no map at all, what it lacks is no news.
            found.retain(|mistake| mistake.path.is_empty());
        }
        if found.is_empty() { Ok(()) } else { Err(Mistakes(found)) }
    }
}
