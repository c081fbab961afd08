//! The wrapper's last words on a stream: a token that proves that the program ended, and how. Pure.
//!
//! `RS NONCE=STATUS;` or `RS NONCE=STATUS!`: one small write, so nothing comes in between; its first byte (ASCII 30) is one that
//! programs hardly ever print and no terminal changes; the rest is printable, and read without regard to case (`stty olcuc`).
//! What follows `;` is output all the same, of children that outlive the program. `!` says that nothing is to follow.

use bytes::{Bytes, BytesMut};

/// The first byte, and the only place of it.
const FIRST: u8 = 0x1e;
/// Its last byte where more output may follow.
const ENDED: u8 = b';';
/// Its last byte where none will.
const OVER: u8 = b'!';
/// Digits of a status.
const DIGITS: usize = 3;

/// Takes the token out of a stream. Keeps back only what may be the token's beginning, and never more than its length.
#[derive(Debug, Clone)]
pub struct Token {
    word: Vec<u8>,
    held: Bytes,
    status: Option<u8>,
    over: bool,
}

/// What stands at a [`FIRST`].
enum At {
    Nothing,
    /// All there is so far is the token's beginning.
    Beginning,
    Token {
        len: usize,
        status: u8,
        over: bool,
    },
}

impl Token {
    pub(super) fn new(nonce: &str) -> Self {
        let word = [&[FIRST], nonce.as_bytes(), b"="].concat();
        Self { word, held: Bytes::new(), status: None, over: false }
    }

    /// Takes the next bytes; gives those that are the program's, in order.
    pub fn take(&mut self, bytes: Bytes) -> Vec<Bytes> {
        let mut rest = if self.held.is_empty() {
            bytes
        } else {
            let mut joined = BytesMut::with_capacity(self.held.len() + bytes.len());
            joined.extend_from_slice(&self.release());
            joined.extend_from_slice(&bytes);
            joined.freeze()
        };
        let mut out = Vec::new();
        let mut from = 0;
        while let Some(at) = rest.get(from..).and_then(|rest| memchr::memchr(FIRST, rest)) {
            let at = from + at;
            match self.at(rest.get(at..).unwrap_or_default()) {
                At::Nothing => from = at + 1,
                At::Beginning => self.held = rest.split_off(at),
                At::Token { len, status, over } => {
                    self.status = Some(status);
                    self.over = over;
                    out.push(rest.split_to(at));
                    let _ = rest.split_to(len);
                    from = 0;
                }
            }
        }
        out.push(rest);
        out.retain(|bytes| !bytes.is_empty());
        out
    }

    fn at(&self, bytes: &[u8]) -> At {
        let seen = bytes.len().min(self.word.len());
        let (head, tail) = bytes.split_at(seen);
        if !self.word.get(..seen).is_some_and(|word| word.eq_ignore_ascii_case(head)) {
            return At::Nothing;
        }
        let digits = tail.iter().take(DIGITS).take_while(|byte| byte.is_ascii_digit()).count();
        match tail.get(digits) {
            None => At::Beginning,
            Some(&last @ (ENDED | OVER)) => {
                let status = tail.get(..digits).and_then(|digits| std::str::from_utf8(digits).ok());
                let status = status.and_then(|digits| digits.parse().ok());
                status.map_or(At::Nothing, |status| At::Token { len: seen + digits + 1, status, over: last == OVER })
            }
            Some(_) => At::Nothing,
        }
    }

    /// How many bytes are kept back.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Gives what is kept back: it was not the token, or its rest doesn't come.
    pub fn release(&mut self) -> Bytes {
        std::mem::take(&mut self.held)
    }

    /// The program's status, once the token came.
    pub fn status(&self) -> Option<u8> {
        self.status
    }

    /// Whether the token came and said that nothing is to follow.
    pub fn is_over(&self) -> bool {
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONCE: &str = "podbay-0123456789abcdef";

    fn token(status: &str) -> Vec<u8> {
        format!("\u{1e}{NONCE}={status};").into_bytes()
    }

    /// Pieces of the token, whole ones of no or another meaning, and anything else.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            (0..30_usize, 0..30_usize)
                .prop_map(|(from, len)| { token("7").into_iter().skip(from).take(len).collect::<Vec<u8>>() }),
            Just(token("")),
            Just(token("256")),
            Just(token("0007")),
            Just(token("-1")),
            Just(b"\x1e\x1e\x1e".to_vec()),
            prop::collection::vec(any::<u8>(), 0..20),
        ];
        let pieces = prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
        // By chance a whole token can come together; that one would be no user's bytes.
        pieces.prop_filter("a token", |bytes| !has_token(bytes))
    }

    fn has_token(bytes: &[u8]) -> bool {
        let mut token = Token::new(NONCE);
        token.take(Bytes::copy_from_slice(bytes));
        token.status().is_some()
    }

    proptest! {
        /// At whatever cuts: the user's bytes are whole and in order, the token is found and gone, and what is kept back is
        /// a beginning of it.
        #[test]
        fn every_byte_but_the_token_passes(
            before in hostile(),
            after in hostile(),
            status in prop::option::of(any::<u8>()),
            upper in any::<bool>(),
            over in any::<bool>(),
            cuts in prop::collection::vec(1usize..40, 1..20),
        ) {
            let mut word = status.map(|status| token(&status.to_string())).unwrap_or_default();
            if upper { word.make_ascii_uppercase(); }
            if let Some(last) = word.last_mut().filter(|_| over) { *last = OVER; }
            let stream = [before.clone(), word, after.clone()].concat();
            let mut token = Token::new(NONCE);
            let (mut passed, mut at) = (Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                if at == stream.len() { break }
                let end = (at + cut).min(stream.len());
                passed.extend(token.take(Bytes::copy_from_slice(&stream[at..end])).concat());
                at = end;
                prop_assert!(token.held() <= NONCE.len() + 2 + DIGITS);
                prop_assert!(stream[..at].ends_with(&token.held) && token.held.first().is_none_or(|&b| b == FIRST));
            }
            passed.extend(token.release());
            let wanted = [before, after].concat();
            prop_assume!(status.is_some() || !has_token(&wanted));
            prop_assert_eq!(passed, wanted);
            prop_assert_eq!((token.status(), token.is_over()), (status, status.is_some() && over));
        }

        /// Output that doesn't look like it is never kept back, and never copied or cut into pieces.
        #[test]
        fn other_output_passes_at_once(mut bytes in prop::collection::vec(any::<u8>(), 1..3000)) {
            if bytes.last() == Some(&FIRST) { bytes.push(b'x'); }
            let mut token = Token::new(NONCE);
            let passed = token.take(bytes.clone().into());
            if token.held() == 0 {
                prop_assert_eq!(passed, vec![Bytes::from(bytes)]);
            } else {
                prop_assert!(bytes.ends_with(&token.held));
            }
        }
    }

    #[test]
    fn a_released_beginning_is_not_completed_later() {
        let whole = token("0");
        let mut token = Token::new(NONCE);
        assert!(token.take(Bytes::copy_from_slice(&whole[..5])).is_empty());
        assert_eq!(token.release(), whole[..5]);
        assert_eq!(token.take(Bytes::copy_from_slice(&whole[5..])).concat(), whole[5..]);
        assert_eq!(token.status(), None);
    }
}
