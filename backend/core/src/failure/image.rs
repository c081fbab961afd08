//! Images that don't come.

/// Whether this failure of a pull is the registry's definite answer (no such image, not allowed), and not trouble on the way.
pub(super) fn definite(message: &str) -> bool {
    let text = message.to_lowercase();
    // The name server's 'not found' and the like are trouble on the way.
    let way = [
        "no such host",
        "dial tcp",
        "i/o timeout",
        "connection refused",
        "connection reset",
        "toomanyrequests",
        "too many requests",
        "tls handshake",
        "deadline exceeded",
        "lookup ",
        "500 internal server error",
        "502 bad gateway",
        "503 service unavailable",
        "no space left",
    ];
    let answer = [
        "not found",
        "manifest unknown",
        "name unknown",
        "repository does not exist",
        "pull access denied",
        "unauthorized",
        "authentication required",
        "authorization failed",
        "no basic auth credentials",
        "403 forbidden",
        "401 unauthorized",
        "requested access to the resource is denied",
        "no matching manifest",
        "no match for platform",
    ];
    !way.iter().any(|words| text.contains(words)) && answer.iter().any(|words| text.contains(words))
}

/// The pulls of one container's image, as far as they were seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulls {
    /// Pulls that were seen to fail, by the status.
    failed: u32,
    /// Whether the last status showed a failed pull.
    in_failure: bool,
    /// The last failure's words.
    pub message: String,
    /// Failed pulls by the events' count.
    counted: u32,
}

impl Pulls {
    /// The status shows a failed pull.
    pub fn failure(&mut self, message: &str) {
        if !self.in_failure {
            self.failed += 1;
        }
        self.in_failure = true;
        self.learn(message);
    }

    /// The status shows the wait for the next pull. That a pull failed before it is certain, whether it was seen or not.
    pub fn back_off(&mut self, message: &str) {
        self.in_failure = false;
        self.failed = self.failed.max(1);
        // Newer kubelets repeat the cause: `Back-off pulling image "x": ErrImagePull: …`.
        if let Some((_, cause)) = message.split_once("ErrImagePull:") {
            self.learn(cause.trim());
        }
    }

    /// The events count this many failed pulls.
    pub fn events(&mut self, count: u32, message: &str) {
        self.counted = self.counted.max(count);
        if self.message.is_empty() {
            self.learn(message);
        }
    }

    /// How many pulls have failed.
    pub fn count(&self) -> u32 {
        self.failed.max(self.counted)
    }

    fn learn(&mut self, message: &str) {
        if !message.is_empty() {
            message.clone_into(&mut self.message);
        }
    }
}
