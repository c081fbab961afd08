//! A section read in other words: older names and shapes of the same settings, with the positions and names of the file.

use super::{
    node::{Node, Value},
    section::Section,
};
use std::rc::Rc;

/// Where a key of a translated section has its value from.
#[derive(Debug, Clone, Copy)]
pub enum Moved<'a> {
    /// From the key of this name.
    From(&'a str),
    /// A map of one entry: this key, with the value of that one.
    Below(&'a str, &'a str),
    /// From further down: names of keys, and indexes of lists in decimal.
    At(&'a [&'a str]),
    /// This.
    Text(&'a str),
    /// This.
    Flag(bool),
    /// An empty list.
    Empty,
}

impl Section {
    /// The same section as its reader knows it: each key with where its value comes from. Keys that are not there stay absent.
    /// Mistakes are told with the file's own names. What is named here counts as read; the rest is for this section's own reader.
    #[must_use]
    pub fn translated(&mut self, keys: &[(&'static str, Moved<'_>)]) -> Self {
        let (mut entries, mut names) = (Vec::new(), Vec::new());
        for (key, moved) in keys {
            let made = |value| Some((self.at(), Rc::new(Node::new(value, self.at()))));
            let found = match moved {
                Moved::From(old) | Moved::Below(_, old) => {
                    self.ignore(old);
                    names.push((*key, (*old).to_owned()));
                    self.entry(old)
                }
                Moved::At(steps) => {
                    names.push((*key, steps.join(".")));
                    self.walk(steps).map(|node| (node.at, node))
                }
                Moved::Text(text) => made(Value::Text((*text).to_owned())),
                Moved::Flag(flag) => made(Value::Bool(*flag)),
                Moved::Empty => made(Value::List(Vec::new())),
            };
            let Some((at, node)) = found else { continue };
            let node = match moved {
                Moved::Below(below, _) => {
                    let place = node.at;
                    Rc::new(Node::new(Value::Map(vec![((*below).to_owned(), at, node)]), place))
                }
                _ => node,
            };
            entries.push(((*key).to_owned(), at, node));
        }
        let node = Node::new(Value::Map(entries), self.at());
        self.in_other_words(Rc::new(node), names)
    }

    /// Whether there is a value so many steps down ([`Moved::At`]).
    pub fn reaches(&self, steps: &[&str]) -> bool {
        self.walk(steps).is_some()
    }

    /// The value some steps down.
    fn walk(&self, steps: &[&str]) -> Option<Rc<Node>> {
        let (first, rest) = steps.split_first()?;
        let mut node = self.entry(first)?.1;
        for step in rest {
            let next = match &node.value {
                Value::Map(entries) => {
                    entries.iter().find(|(key, ..)| key.eq_ignore_ascii_case(step)).map(|(_, _, node)| Rc::clone(node))
                }
                Value::List(items) => step.parse::<usize>().ok().and_then(|i| items.get(i)).map(Rc::clone),
                _ => None,
            };
            node = next?;
        }
        (!matches!(node.value, Value::Null)).then_some(node)
    }
}
