//! A bearer token in a file that others replace (`kubernetes.connection.bearerTokenFile`).
//!
//! kube reads such a file once a minute and sends what it holds as it is; here a new token counts within seconds, and an
//! editor's line end is no part of it.

use http::{HeaderValue, Request, header::AUTHORIZATION};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A token is taken as read for so long.
const FRESH: Duration = Duration::from_secs(2);

/// More is no token.
const MAX_TOKEN: u64 = 64 * 1024;

/// The file and what it last held. Clones share it.
#[derive(Clone)]
pub(super) struct TokenFile {
    path: Arc<PathBuf>,
    last: Arc<Mutex<(Instant, HeaderValue)>>,
}

impl TokenFile {
    /// # Errors
    /// Where the file can't be read now, or holds no token.
    pub fn new(path: &Path) -> io::Result<Self> {
        let last = Arc::new(Mutex::new((Instant::now(), header(path)?)));
        Ok(Self { path: Arc::new(path.to_owned()), last })
    }

    /// The request with the token of the moment. A file that can't be read counts as unchanged: some take it away.
    pub fn authorize<B>(&self, mut request: Request<B>) -> Request<B> {
        request.headers_mut().insert(AUTHORIZATION, self.header());
        request
    }

    fn header(&self) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0.elapsed() >= FRESH {
            last.0 = Instant::now();
            // A small file of this host, every other second at most: no reason to leave the thread for it.
            match header(&self.path) {
                Ok(header) => last.1 = header,
                Err(error) => {
                    let file = self.path.display();
                    tracing::warn!(%file, %error, "bearerTokenFile can't be read; going on with the last token");
                }
            }
        }
        last.1.clone()
    }
}

fn header(path: &Path) -> io::Result<HeaderValue> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text);
    if std::fs::metadata(path)?.len() > MAX_TOKEN {
        return Err(invalid("larger than any token"));
    }
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(path)?);
    let token = text.trim();
    if token.is_empty() {
        return Err(invalid("holds no token"));
    }
    let value = zeroize::Zeroizing::new(format!("Bearer {token}"));
    let mut header = HeaderValue::from_str(&value).map_err(|_| invalid("holds something else than a token"))?;
    header.set_sensitive(true);
    Ok(header)
}
