//! Reading configuration files: YAML (and so JSON) with positions, reporting *every* mistake at once.
//!
//! A [`Document`] is a tree of nodes with their line and column. A [`Section`] is a map of it that a program reads key by
//! key; whatever it asks for wrongly, or doesn't ask for at all, becomes a [`Mistake`]. The types that hold a
//! configuration live in the program that owns the section; this module only reads.
//!
//! One YAML reader serves the whole tree: serde-saphyr, under the name `serde_yaml` (docs/design/0001-yaml.md).

mod convert;
mod describe;
mod duration;
mod mistake;
mod node;
mod section;
mod source;
mod strict;
mod translate;

pub use convert::{FromNode, Secret, TextOrNumber};
pub use describe::{Kind, Note, Notes, Shown, nested, to_yaml};
pub use duration::{DurationError, format_duration, parse_duration};
pub use mistake::{Mistake, Mistakes};
pub use node::{Document, Noted};
pub use section::Section;
pub use translate::Moved;

#[cfg(test)]
mod tests;
