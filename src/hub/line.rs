//! The line to the Hub: one request after the other, each tried again while that may help. It knows HTTP, waiting and
//! `Retry-After`; it does not know what is asked.

use super::token::Token;
use crate::error::{Error, Result};
use hf_hub::HFError;
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;
use std::io::Read;
use std::time::Duration;

/// Tries after the first one.
const RETRIES: u32 = 5;
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_mins(5);
/// The most bytes of an answer.
const MOST_ANSWER: u64 = 32 << 20;
/// How long a request without a large body may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// Where the Hub is, who asks, and how long the first wait is (it doubles with each).
pub(super) struct Line {
    pub endpoint: String,
    pub token: Token,
    pub first_wait: Duration,
    client: Client,
}

/// Why an answer is none.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The HTTP status; `None` where no answer came.
    pub status: Option<u16>,
    pub retry_after: Option<Duration>,
    /// What the Hub says, or what broke; without the token, and of addresses without what follows `?`.
    pub message: String,
}

impl Refusal {
    /// For an answer that is not what the protocol says.
    pub fn malformed(what: &str) -> Self {
        Self { status: Some(200), retry_after: None, message: what.into() }
    }

    /// Whether the same request may work a little later.
    pub fn is_transient(&self) -> bool {
        self.status.is_none_or(|status| matches!(status, 408 | 425 | 429 | 500 | 502..=504))
    }
}

impl Line {
    pub fn open(endpoint: Option<&str>, token: Token, first_wait: Duration) -> Result<Self> {
        let endpoint = endpoint.map_or_else(default_endpoint, String::from).trim_end_matches('/').to_owned();
        let client = Client::builder()
            .user_agent(concat!("equipoise/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(30))
            .timeout(PATIENCE)
            .build()
            .map_err(|error| Error::Hub { message: format!("no connection can be made: {error}"), help: None })?;
        if reqwest::Url::parse(&endpoint).ok().is_none_or(|url| !matches!(url.scheme(), "http" | "https")) {
            let message = "the Hub's address is none: expected https://…";
            return Err(Error::Hub { message: message.into(), help: Some("check HF_ENDPOINT".into()) });
        }
        Ok(Self { endpoint, token, first_wait, client })
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.authorized(self.client.get(self.url(path)))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.authorized(self.client.post(self.url(path)))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.endpoint)
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        request.bearer_auth(self.token.secret())
    }

    /// A POST to an address that the Hub named. The token goes there only if it is the Hub itself.
    pub fn post_to(&self, address: &str) -> Result<RequestBuilder, Refusal> {
        let url =
            reqwest::Url::parse(address).map_err(|_| Refusal::malformed("the Hub names an address that is none"))?;
        let hub = reqwest::Url::parse(&self.endpoint).ok();
        let ours = hub.is_some_and(|hub| hub.origin() == url.origin());
        let request = self.client.post(url);
        Ok(if ours { self.authorized(request) } else { request })
    }

    /// A PUT of `bytes` bytes to an address that the Hub named, which never gets the token. A line that is slower than
    /// 16 KiB/s is taken for a broken one.
    pub fn put_to(&self, address: &str, bytes: u64) -> Result<RequestBuilder, Refusal> {
        let url =
            reqwest::Url::parse(address).map_err(|_| Refusal::malformed("the Hub names an address that is none"))?;
        Ok(self.client.put(url).timeout(PATIENCE + Duration::from_secs(bytes >> 14)))
    }

    /// Sends a request once.
    pub fn send(&self, request: RequestBuilder) -> Result<Response, Refusal> {
        let response = request.send().map_err(|error| self.broken(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let text = |name: &str| response.headers().get(name)?.to_str().ok().map(String::from);
        let said = text("x-error-message");
        let retry_after = retry_after(response.headers());
        let mut body = String::new();
        let _ = response.take(1 << 16).read_to_string(&mut body);
        let of_body =
            serde_json::from_str(&body).ok().and_then(|body: Value| Some(body.get("error")?.as_str()?.to_owned()));
        let said: String = said.or(of_body).unwrap_or_default().chars().take(500).collect();
        Err(Refusal { status: Some(status), retry_after, message: self.clean(&said) })
    }

    /// As [`Line::send`], for an answer in JSON.
    pub fn json(&self, request: RequestBuilder) -> Result<Value, Refusal> {
        let mut body = Vec::new();
        let cut = |error: std::io::Error| Refusal {
            status: None,
            retry_after: None,
            message: self.clean(&format!("the answer was cut off: {error}")),
        };
        self.send(request)?.take(MOST_ANSWER).read_to_end(&mut body).map_err(cut)?;
        serde_json::from_slice(&body).map_err(|_| Refusal::malformed("the answer is not JSON"))
    }

    fn broken(&self, error: &reqwest::Error) -> Refusal {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        Refusal { status: None, retry_after: None, message: self.clean(&text) }
    }

    /// What others say, without the token and without what can be a signature.
    pub fn clean(&self, text: &str) -> String {
        let text = self.token.redact(text);
        let mut words = text.split(' ').map(|word| match word.split_once('?') {
            Some((address, _)) if address.contains("://") => address,
            _ => word,
        });
        let first = words.next().unwrap_or_default().to_string();
        words.fold(first, |text, word| text + " " + word)
    }

    /// What hf-hub says, in the same form.
    pub fn refusal(&self, error: HFError) -> Refusal {
        let of = |status: u16, message: Option<String>, retry_after| Refusal {
            status: Some(status),
            retry_after,
            message: self.clean(&message.unwrap_or_default()),
        };
        match error {
            HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context }
            | HFError::Http { context } => of(context.status.as_u16(), context.server_message, None),
            HFError::RateLimited { retry_after, context } => of(429, context.server_message, retry_after),
            HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } => of(404, None, None),
            HFError::Request { source, .. } => self.broken(&source),
            other => Refusal::malformed(&self.clean(&other.to_string())),
        }
    }

    /// Asks until it is answered, waiting as long as the Hub says, or twice as long each time. `wait` is told why and how
    /// long.
    pub fn patiently<T>(
        &self,
        wait: &mut dyn FnMut(&Refusal, Duration),
        mut ask: impl FnMut() -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut tries = 0;
        loop {
            let refusal = match ask() {
                Err(refusal) if refusal.is_transient() && tries < RETRIES => refusal,
                answer => return answer,
            };
            let pause = refusal.retry_after.unwrap_or(self.first_wait * 2u32.pow(tries));
            if pause > LONGEST_WAIT {
                return Err(refusal);
            }
            wait(&refusal, pause);
            std::thread::sleep(pause);
            tries += 1;
        }
    }
}

pub(super) fn default_endpoint() -> String {
    let set = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.trim().is_empty());
    set.unwrap_or_else(|| "https://huggingface.co".into())
}

/// Seconds, or what the Hub's rate limit says (`ratelimit: "api";r=0;t=55`).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let of_limit = || {
        let limit = headers.get("ratelimit")?.to_str().ok()?;
        let part = |name: &str| limit.split(';').find_map(|part| part.trim().strip_prefix(name)?.parse::<u64>().ok());
        part("t=").filter(|_| part("r=") == Some(0))
    };
    seconds.or_else(of_limit).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line::open(Some("https://hub.example"), Token::new("hf_secret_token").unwrap(), Duration::ZERO).unwrap()
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let refused = |status| Refusal { status, retry_after: None, message: String::new() };
        for (status, tries) in
            [(Some(503), 6), (Some(429), 6), (None, 6), (Some(403), 1), (Some(409), 1), (Some(501), 1)]
        {
            let (mut asked, mut waited) = (0, 0);
            let answer = line().patiently(&mut |_, _| waited += 1, || -> Result<(), _> {
                asked += 1;
                Err(refused(status))
            });
            assert_eq!((asked, waited, answer.unwrap_err().status), (tries, tries - 1, status));
        }
        // Nobody waits an hour for a prompt to come back.
        let long = || Err::<(), _>(Refusal { retry_after: Some(Duration::from_hours(1)), ..refused(Some(429)) });
        assert!(line().patiently(&mut |_, _| panic!("waits"), long).is_err());
    }

    #[test]
    fn the_wait_is_what_the_hub_says() {
        let of = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(of("retry-after", "7"), Some(7));
        assert_eq!(of("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), None);
        assert_eq!(of("ratelimit", "\"api\";r=0;t=55"), Some(55));
        assert_eq!(of("ratelimit", "\"api\";r=3;t=55"), None);
    }

    #[test]
    fn the_token_goes_to_the_hub_alone() {
        let line = line();
        let has_token = |request: RequestBuilder| request.build().unwrap().headers().contains_key("authorization");
        assert!(has_token(line.get("/api/whoami-v2")) && has_token(line.post("/x")));
        assert!(has_token(line.post_to("https://hub.example/verify").unwrap()));
        for other in [
            "https://storage.example/x",
            "http://hub.example/verify",
            "https://hub.example:8443/x",
            "https://hub.example.evil/x",
        ] {
            assert!(!has_token(line.post_to(other).unwrap()) && !has_token(line.put_to(other, 1).unwrap()), "{other}");
        }
        assert!(!has_token(line.put_to("https://hub.example/x", 1).unwrap()));
        assert_eq!(line.clean("at https://a/b?sig=1 with hf_secret_token why?"), "at https://a/b with … why?");
        assert!(Line::open(Some("ftp://x"), Token::new("hf_x").unwrap(), Duration::ZERO).is_err());
    }
}
