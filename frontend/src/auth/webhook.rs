//! ContainerSSH's authentication webhook: one question for each attempt, `/password`, `/pubkey` and `/authz`.

use crate::metrics::Metrics;
use podbay::ConnectionId;
use podbay_runtime::{
    codes,
    webhook::{CallError, Client, Facts, GaveUp, Json, as_named},
};
use serde_json::{Map, Value, json};
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
};
use tracing::{debug, error};
use zeroize::Zeroizing;

/// Whom a question is about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// As the client names itself.
    pub user: &'a str,
    /// Where the client is.
    pub remote: SocketAddr,
    /// Its connection.
    pub connection: ConnectionId,
    /// Its identification.
    pub version: &'a str,
    /// Counts.
    pub metrics: &'a Metrics,
    /// Whether the last answer took more than one call.
    pub retried: &'a AtomicBool,
}

/// The answer to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may log in, and this is known about it.
    Accepted(Facts),
    /// It may not.
    Refused,
    /// Nobody could say.
    Unavailable,
}

/// What is asked.
#[derive(Debug)]
pub enum Question {
    /// Is this the user's password?
    Password(Zeroizing<String>),
    /// Is this key (`TYPE BASE64`) one of the user's?
    PublicKey(String),
    /// May the user, who has proven to be it, log in?
    Authorization,
}

impl Question {
    const fn path(&self) -> &'static str {
        match self {
            Self::Password(_) => "/password",
            Self::PublicKey(_) => "/pubkey",
            Self::Authorization => "/authz",
        }
    }

    /// ContainerSSH's `authtype`.
    const fn kind(&self) -> &'static str {
        match self {
            Self::Password(_) => "password",
            Self::PublicKey(_) => "pubkey",
            Self::Authorization => "authorization",
        }
    }

    /// What the log may have of an error.
    fn told(&self, error: &CallError) -> CallError {
        match self {
            Self::Password(_) => error.wordless(),
            Self::PublicKey(_) | Self::Authorization => error.clone(),
        }
    }
}

/// The question's JSON. What is known goes with it, but nothing sensitive. `of_0_4`: `remoteAddress` is the address alone, as servers of
/// ContainerSSH 0.4 expect it; `sessionId` is theirs too.
fn body(subject: &Subject<'_>, question: &Question, known: &Facts, of_0_4: bool) -> Value {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut body = Map::new();
    for (key, value) in [
        ("username", subject.user.to_owned()),
        ("remoteAddress", if of_0_4 { subject.remote.ip().to_string() } else { subject.remote.to_string() }),
        ("connectionId", subject.connection.to_string()),
        ("clientVersion", subject.version.to_owned()),
    ] {
        body.insert(key.to_owned(), Value::String(value));
    }
    if of_0_4 {
        body.insert("sessionId".to_owned(), Value::String(subject.connection.to_string()));
    }
    known.put(&mut body, false);
    let own = match question {
        Question::Password(password) => Some(("passwordBase64", json!(STANDARD.encode(password.as_bytes())))),
        Question::PublicKey(key) => Some(("publicKey", json!(key))),
        Question::Authorization => None,
    };
    body.extend(own.map(|(key, value)| (key.to_owned(), value)));
    Value::Object(body)
}

/// An answer, strictly; `None` = `success` is false or absent.
fn read(answer: Value) -> Result<Option<Facts>, String> {
    let Value::Object(mut object) = answer else { return Err("it is no JSON object".to_owned()) };
    as_named(&mut object, &["success"]);
    let success = match object.remove("success") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(success)) => success,
        Some(_) => return Err("success is neither true nor false".to_owned()),
    };
    let facts = Json::take(&mut object)?;
    if let Some(key) = object.keys().next() {
        return Err(format!("unknown key {:?}", key.chars().take(60).collect::<String>()));
    }
    let facts = facts.into_facts().map_err(|error| error.to_string())?;
    Ok(success.then_some(facts))
}

/// Asks. Cancel safe: dropping it ends the calls.
pub async fn ask(client: &Client, subject: Subject<'_>, question: &Question, known: &Facts) -> Verdict {
    let (connection, user, authtype) = (subject.connection, subject.user, question.kind());
    let counted = subject.metrics.auth_calls().of(authtype);
    let failed = |error: &CallError, tries| {
        let (code, reason) = (codes::AUTH_BACKEND_ERROR, counted.reason(error));
        debug!(%connection, user, authtype, code, reason, tries, "the authentication webhook {}", question.told(error));
    };
    debug!(%connection, user, authtype, code = codes::AUTH, "asking the authentication webhook");
    let asked = client
        .ask(question.path(), &body(&subject, question, known, client.endpoint().of_0_4), counted, read, failed)
        .await;
    let (verdict, tries) = match asked {
        Ok(answer) => (answer.value.map_or(Verdict::Refused, Verdict::Accepted), answer.tries),
        Err(why) => {
            let (code, reason) = (codes::AUTH_BACKEND_ERROR, counted.reason(&why.last));
            let told = GaveUp { last: question.told(&why.last), tries: why.tries };
            error!(%connection, user, authtype, code, reason, url = client.endpoint().url, "the authentication webhook {told}");
            (Verdict::Unavailable, why.tries)
        }
    };
    let retried = tries > 1;
    subject.retried.store(retried, Ordering::Relaxed);
    let success = match &verdict {
        Verdict::Accepted(_) => {
            debug!(%connection, user, authtype, code = codes::AUTH_SUCCESSFUL, "the authentication webhook says yes");
            true
        }
        Verdict::Refused => {
            debug!(%connection, user, authtype, code = codes::AUTH_FAILED, "the authentication webhook says no");
            false
        }
        Verdict::Unavailable => return verdict,
    };
    // The others are counted where it shows whether a key's owner asks.
    if matches!(question, Question::Authorization) {
        subject.metrics.authorized(success, retried);
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject<'static> {
        Subject {
            user: "alice",
            remote: "[2001:db8::1]:4022".parse().expect("an address"),
            connection: ConnectionId::from_bytes([0xab; 16]),
            version: "SSH-2.0-OpenSSH_9.6",
            metrics: Box::leak(Box::new(Metrics::new(&mut prometheus_client::registry::Registry::default()))),
            retried: Box::leak(Box::default()),
        }
    }

    #[test]
    fn the_questions_are_containersshs() {
        let known = read(json!({"success": true, "authenticatedUsername": "Alice", "metadata": {
            "t": {"value": "1"}, "s": {"value": "2", "sensitive": true}}}));
        let known = known.expect("valid").expect("success");
        let common = json!({
            "username": "alice", "remoteAddress": "[2001:db8::1]:4022", "connectionId": "ab".repeat(16),
            "clientVersion": "SSH-2.0-OpenSSH_9.6",
        });
        let with = |more: Value| {
            let (Value::Object(mut all), Value::Object(more)) = (common.clone(), more) else { panic!("objects") };
            all.extend(more);
            Value::Object(all)
        };
        let none = Facts::default();
        assert_eq!(
            body(&subject(), &Question::Password(Zeroizing::new("pä?".to_owned())), &none, false),
            with(json!({"passwordBase64": "cMOkPw=="}))
        );
        let key = "ssh-ed25519 AAAA".to_owned();
        assert_eq!(
            body(&subject(), &Question::PublicKey(key.clone()), &none, false),
            with(json!({"publicKey": "ssh-ed25519 AAAA"}))
        );
        assert_eq!(
            body(&subject(), &Question::PublicKey(key), &none, true),
            with(
                json!({"publicKey": "ssh-ed25519 AAAA", "remoteAddress": "2001:db8::1", "sessionId": "ab".repeat(16)})
            )
        );
        assert_eq!(
            body(&subject(), &Question::Authorization, &known, false),
            with(json!({"authenticatedUsername": "Alice", "metadata": {"t": {"value": "1", "sensitive": false}}}))
        );
    }

    #[test]
    fn an_error_that_repeats_the_password_is_not_logged() {
        let echo = CallError::Status(422, r#": {"detail": [{"input": {"passwordBase64": "c2VjcmV0"}}]}"#.into());
        let told = |question: &Question| question.told(&echo).to_string();
        assert_eq!(told(&Question::Password(Zeroizing::new("secret".to_owned()))), "answered 422");
        assert_eq!(told(&Question::Authorization), echo.to_string(), "what is wrong is of use elsewhere");
    }

    #[test]
    fn answers_are_read_strictly() {
        assert_eq!(read(json!({})), Ok(None));
        assert_eq!(read(json!({"success": false, "metadata": {"a": {"value": "b"}}})), Ok(None));
        assert_eq!(read(json!({"success": true})), Ok(Some(Facts::default())));
        // As Go reads JSON.
        assert_eq!(read(json!({"Success": true, "ConnectionID": "x"})), Ok(Some(Facts::default())));
        for wrong in
            [json!([]), json!({"success": 1}), json!({"success": "true"}), json!({"success": true, "sucess": 1})]
        {
            read(wrong.clone()).expect_err(&wrong.to_string());
        }
    }
}
