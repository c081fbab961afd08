//! The keys that seal handles: shared by all replicas, rotated by configuration.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use podbay_runtime::config::{Secret, Section};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use std::{fmt, path::PathBuf};

const VERSION: u8 = 1;
const KEY_LEN: usize = 32;

/// A handle could not be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
    /// A key is not 32 bytes.
    #[error("a key must be 32 bytes, written in base64")]
    Length,
}

struct Key {
    id: String,
    key: LessSafeKey,
}

/// All keys; the first seals, all open. To rotate: add the new key last, on all replicas; then move it to the front; and
/// remove the old one when no connection is older than that (Heartbeat seals the handles of living ones anew).
pub struct KeyRing {
    first: Key,
    others: Vec<Key>,
    random: SystemRandom,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().map(|key| &key.id)).finish()
    }
}

impl KeyRing {
    /// One key of this process alone: its handles open on no other replica and not after a restart.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn random() -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let mut bytes = [0; KEY_LEN];
        random.fill(&mut bytes).map_err(|_| KeyError::Random)?;
        Ok(Self { first: Key::new("process", &bytes)?, others: Vec::new(), random })
    }

    /// From ids of at most 64 bytes and keys of 32 bytes.
    ///
    /// # Errors
    /// [`KeyError::Length`].
    pub fn new(first: (&str, &[u8]), others: &[(&str, &[u8])]) -> Result<Self, KeyError> {
        let others = others.iter().map(|(id, bytes)| Key::new(id, bytes)).collect::<Result<_, _>>()?;
        Ok(Self { first: Key::new(first.0, first.1)?, others, random: SystemRandom::new() })
    }

    /// Reads `handleKeys` of the `grpc` section: a list of `{id, key}` or `{id, file}`, where key and file hold 32 bytes in
    /// base64. `None` where there is none (then [`Self::random`] does for a single replica), or where a mistake was recorded.
    pub fn read(grpc: &mut Section) -> Option<Self> {
        let mut keys: Vec<Key> = Vec::new();
        let entries = grpc.list("handleKeys");
        if entries.is_empty() && grpc.has("handleKeys") {
            grpc.mistake("handleKeys", "names no key: give at least one, or leave it out where there is one replica");
        }
        for mut entry in entries {
            let id = entry.required::<String>("id");
            let (inline, file) = (entry.get::<Secret>("key"), entry.get::<PathBuf>("file"));
            let (at, text) = match (inline, file) {
                (Some(key), None) => ("key", key),
                (None, Some(file)) => match entry.text_file(&file) {
                    Ok(text) => ("file", Secret::new(text)),
                    Err(error) => {
                        entry.mistake("file", format!("{} can't be read: {error}", file.display()));
                        continue;
                    }
                },
                (Some(_), Some(_)) | (None, None) => {
                    entry.mistake("key", "give either key or file");
                    continue;
                }
            };
            let Some(id) = id else { continue };
            if id.is_empty() || id.len() > 64 || keys.iter().any(|key| key.id == id) {
                entry.mistake("id", "must be of 1 to 64 bytes and differ from the others'");
                continue;
            }
            match base64(text.expose().trim()).ok_or(KeyError::Length).and_then(|bytes| Key::new(&id, &bytes)) {
                Ok(key) => keys.push(key),
                Err(error) => entry.mistake(at, error.to_string()),
            }
        }
        let mut keys = keys.into_iter();
        Some(Self { first: keys.next()?, others: keys.collect(), random: SystemRandom::new() })
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Whether the first key sealed it.
    pub(super) fn is_current(&self, handle: &[u8]) -> bool {
        header(handle).is_some_and(|(id, _, _)| id == self.first.id.as_bytes())
    }

    pub(super) fn encrypt(&self, mut contents: Vec<u8>, caller: &str) -> Result<Vec<u8>, KeyError> {
        let id = &self.first.id;
        let mut handle = vec![VERSION, u8::try_from(id.len()).unwrap_or(u8::MAX)];
        handle.extend_from_slice(id.as_bytes());
        // 96 random bits: no counter is shared between replicas, and a key seals far fewer than 2^32 handles.
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| KeyError::Random)?;
        let bound = Aad::from(bound(&handle, caller));
        let nonce_sent = nonce;
        self.first
            .key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound, &mut contents)
            .map_err(|_| KeyError::Length)?;
        handle.extend_from_slice(&nonce_sent);
        handle.append(&mut contents);
        Ok(handle)
    }

    pub(super) fn decrypt(&self, handle: &[u8], caller: &str) -> Option<Vec<u8>> {
        let (id, clear, rest) = header(handle)?;
        let key = self.all().find(|key| key.id.as_bytes() == id)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let bound = Aad::from(bound(clear, caller));
        let length = key.key.open_in_place(Nonce::assume_unique_for_key(*nonce), bound, &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

impl Key {
    fn new(id: &str, bytes: &[u8]) -> Result<Self, KeyError> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).map_err(|_| KeyError::Length)?;
        if id.is_empty() || id.len() > 64 {
            return Err(KeyError::Length);
        }
        Ok(Self { id: id.to_owned(), key: LessSafeKey::new(key) })
    }
}

/// The key's id, all that is in clear, and the rest.
fn header(handle: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (&[version, length], rest) = handle.split_first_chunk::<2>()?;
    if version != VERSION {
        return None;
    }
    let (id, rest) = rest.split_at_checked(length.into())?;
    Some((id, handle.get(..2 + id.len())?, rest))
}

/// What is in clear, and for whom. The clear part tells its own length, so the two can't be confused.
fn bound(clear: &[u8], caller: &str) -> Vec<u8> {
    [clear, caller.as_bytes()].concat()
}

/// Standard base64 with or without padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&alphabet::STANDARD, config).decode(text).ok()
}
