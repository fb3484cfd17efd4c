//! Telling submitters of finished analyses: the document is posted to the URL that came with the file.
//!
//! **Invariants.** What is yet to be told lies in the result store, so that a restart forgets none. A try is noted before it
//! is made, with the time of the next one, so that a gateway which dies over one does not try for ever. Whoever is told may be told twice,
//! when several gateways work on one store or an answer is lost; the signature covers the time at which it was made. A receiver
//! that does not answer holds up no other one: each has a few tries at once, and who waits for them is passed over.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hmac::{Hmac, KeyInit, Mac};
use lazaret_analysis::store::CALLBACK_DELAY_MS_MAX;
use lazaret_analysis::{Callback, DataId};
use reqwest::Url;
use sha2::Sha256;

use crate::gateway::Shared;
use crate::outbound::{OutboundError, OutboundOptions, checked_url, post_json};
use crate::view::{PageView, document};

/// How often is looked for analyses that are to be told.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long after a look that found more than it takes comes the next one.
const INTERVAL_MORE: Duration = Duration::from_millis(100);
/// Tries at once of one receiver, and over all. Each holds a document of one page.
const CONCURRENT_PER_RECEIVER: usize = 4;
const CONCURRENT: usize = 64;
/// Callbacks that one look takes.
const PAGE: u32 = 256;
/// The pause after the first try; it doubles up to the longest.
const PAUSE_MS: u64 = 5_000;
const PAUSE_MS_MAX: u64 = 60 * 60 * 1_000;
/// Tries of one callback: with the pauses between them, between five and six hours.
const TRIES_MAX: u32 = 15;
/// Nested files that a callback tells of: the first page.
const PAGE_FILES: u32 = 50;
/// The header with the signature.
const SIGNATURE_HEADER: &str = "x-lazaret-signature";

/// Whom the gateway may tell, and the key that signs what it tells.
#[derive(Clone)]
pub struct CallbackOptions {
    /// Whom it may tell.
    pub outbound: OutboundOptions,
    /// Signs. Receivers know it.
    pub key: CallbackKey,
}

impl std::fmt::Debug for CallbackOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallbackOptions").field("outbound", &self.outbound).finish_non_exhaustive()
    }
}

/// A key of HMAC-SHA-256.
#[derive(Clone)]
pub struct CallbackKey(String);

impl CallbackKey {
    /// The key of a file, which is made for its owner alone if it is missing. Blocks.
    pub fn open(path: &Path) -> io::Result<Self> {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(mut file) => {
                let mut bytes = [0; 32];
                getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
                file.write_all(hex::encode(bytes).as_bytes())?;
                file.sync_all()?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let key = fs::read_to_string(path)?.trim().to_owned();
        if key.len() < 32 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a callback key has 32 characters at least"));
        }
        Ok(Self(key))
    }

    /// A key that is known already.
    pub fn from_text(key: &str) -> Self {
        Self(key.to_owned())
    }

    /// `t=<unix seconds>,v1=<HMAC-SHA-256 of "<t>.<body>" in hexadecimal>`.
    pub fn signature(&self, unix_seconds: u64, body: &[u8]) -> String {
        // Every length of key is taken.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()) else { return String::new() };
        mac.update(format!("{unix_seconds}.").as_bytes());
        mac.update(body);
        format!("t={unix_seconds},v1={}", hex::encode(mac.finalize().into_bytes()))
    }
}

/// Callbacks under way, and those of the last look that may begin.
#[derive(Default)]
struct Turns {
    /// Of each receiver that has any under way, how many.
    receivers: HashMap<String, usize>,
    under_way: HashSet<DataId>,
    waiting: Vec<Callback>,
}

impl Turns {
    /// Takes what a look found, in place of what the last one did. Of what is under way the next time may not be noted yet.
    fn look(&mut self, found: Vec<Callback>) {
        self.waiting = found;
        self.waiting.retain(|callback| !self.under_way.contains(&callback.data_id));
    }

    /// The longest due one that may begin now, with its receiver.
    fn begin(&mut self) -> Option<(Callback, String)> {
        if self.under_way.len() >= CONCURRENT {
            return None;
        }
        let at = self.waiting.iter().position(|callback| {
            let tries = self.receivers.get(&receiver_of(&callback.url)).copied().unwrap_or(0);
            tries < CONCURRENT_PER_RECEIVER
        })?;
        let callback = self.waiting.remove(at);
        let receiver = receiver_of(&callback.url);
        *self.receivers.entry(receiver.clone()).or_default() += 1;
        self.under_way.insert(callback.data_id);
        Some((callback, receiver))
    }

    fn end(&mut self, data_id: DataId, receiver: &str) {
        self.under_way.remove(&data_id);
        if let Some(tries) = self.receivers.get_mut(receiver) {
            *tries = tries.saturating_sub(1);
            if *tries == 0 {
                self.receivers.remove(receiver);
            }
        }
    }
}

/// Host and port of a URL; of what is none, which is refused when it is tried, the text.
fn receiver_of(url: &str) -> String {
    match Url::parse(url) {
        Ok(parsed) => {
            format!("{}:{}", parsed.host_str().unwrap_or_default(), parsed.port_or_known_default().unwrap_or_default())
        }
        Err(_) => url.to_owned(),
    }
}

/// Tells of what is finished, for ever.
pub(crate) async fn tell(shared: &Shared, options: &CallbackOptions) {
    let clock = &shared.intake.environment.clock;
    let mut turns = Turns::default();
    let mut running = FuturesUnordered::new();
    let mut after = None;
    let mut next_look = clock.monotonic();
    loop {
        while let Some((callback, receiver)) = turns.begin() {
            running.push(async move {
                let data_id = callback.data_id;
                try_one(shared, options, callback).await;
                (data_id, receiver)
            });
        }
        tokio::select! {
            Some((data_id, receiver)) = running.next() => turns.end(data_id, &receiver),
            () = clock.sleep(next_look.saturating_sub(clock.monotonic())) => {
                // Page by page and then from the beginning, so that those of a receiver that takes none hide no others.
                let more = match shared.results.due_callbacks(shared.now_ms(), after, PAGE).await {
                    Ok(page) => {
                        let full = page.len() >= PAGE as usize;
                        after = page.last().filter(|_| full).map(|last| (last.due_ms, last.data_id));
                        turns.look(page);
                        full
                    }
                    Err(error) => {
                        tracing::warn!(%error, "callbacks cannot be read now");
                        false
                    }
                };
                next_look = clock.monotonic() + if more { INTERVAL_MORE } else { INTERVAL };
            }
        }
    }
}

async fn try_one(shared: &Shared, options: &CallbackOptions, callback: Callback) {
    let data_id = callback.data_id;
    let last = callback.attempts.saturating_add(1) >= TRIES_MAX;
    let pause_ms = (PAUSE_MS << callback.attempts.min(20)).min(PAUSE_MS_MAX);
    // Longer than the try itself may take, so that the next one does not begin beside it.
    let time_max_ms = u64::try_from(options.outbound.time_max.as_millis()).unwrap_or(u64::MAX);
    let next_ms = shared.now_ms().saturating_add(time_max_ms.saturating_add(pause_ms).min(CALLBACK_DELAY_MS_MAX));
    match shared.results.callback_tried(data_id, Some(next_ms)).await {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => return tracing::warn!(%data_id, %error, "a callback could not be noted, and is not made now"),
    }
    match tell_one(shared, options, &callback).await {
        Ok(()) => tracing::info!(%data_id, attempts = callback.attempts, "callback made"),
        Err(error) if last || error.is_refusal() => {
            tracing::warn!(%data_id, %error, attempts = callback.attempts, "callback given up");
        }
        // When it is made again is noted already.
        Err(error) => {
            tracing::info!(%data_id, %error, pause_ms, "callback failed and is made again later");
            return;
        }
    }
    if let Err(error) = shared.results.callback_tried(data_id, None).await {
        tracing::warn!(%data_id, %error, "the end of a callback could not be noted; it will be made again");
    }
}

async fn tell_one(shared: &Shared, options: &CallbackOptions, callback: &Callback) -> Result<(), OutboundError> {
    let url = checked_url(&options.outbound, &callback.url)?;
    let unreadable = |error: lazaret_analysis::StoreError| OutboundError::Lookup {
        host: "the result store".to_owned(),
        source: io::Error::other(error),
    };
    let record = shared.results.get(callback.data_id).await.map_err(unreadable)?;
    let record = record.ok_or_else(|| OutboundError::Refused("its analysis is gone".to_owned()))?;
    let page = shared.results.nested(callback.data_id, 0, PAGE_FILES).await.map_err(unreadable)?;
    let page = PageView { first: 0, size: PAGE_FILES, page };
    let body = serde_json::to_vec(&document(&record, Some(&page), None))
        .map_err(|error| OutboundError::Refused(error.to_string()))?;
    let signature = options.key.signature(shared.now_ms() / 1000, &body);
    post_json(&options.outbound, &url, vec![(SIGNATURE_HEADER, signature)], body).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn receivers_have_a_few_tries_each_and_all_of_them_a_bound() {
        let callback = |number: u16, url: String| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&number.to_be_bytes());
            Callback { data_id: DataId(id), url, attempts: 0, due_ms: 0 }
        };
        let hung = (0..100).map(|number| callback(number, "https://hangs.example/x".to_owned()));
        let other = callback(100, "https://answers.example/x".to_owned());
        let mut turns = Turns::default();
        turns.look(hung.chain([other.clone()]).collect());
        let begun: Vec<_> = std::iter::from_fn(|| turns.begin()).collect();
        assert_eq!(begun.len(), CONCURRENT_PER_RECEIVER + 1);
        assert_eq!(begun.last(), Some(&(other, "answers.example:443".to_owned())));
        turns.end(begun[1].0.data_id, &begun[1].1);
        turns.look(vec![begun[0].0.clone()]);
        assert_eq!(turns.begin(), None, "it is under way");
        turns.look(vec![begun[1].0.clone()]);
        assert!(turns.begin().is_some());

        let many = (200..400).map(|number| callback(number, format!("http://{number}.example/")));
        let mut turns = Turns::default();
        turns.look(many.collect());
        let begun: Vec<_> = std::iter::from_fn(|| turns.begin()).collect();
        assert_eq!(begun.len(), CONCURRENT);
        begun.iter().for_each(|(callback, receiver)| turns.end(callback.data_id, receiver));
        assert!(turns.receivers.is_empty() && turns.under_way.is_empty());
    }

    #[test]
    fn the_signature_is_hmac_sha_256_of_time_and_body() {
        // openssl dgst -sha256 -hmac "$(cat key)" over "1700000000.{}".
        let key = CallbackKey::from_text("0123456789abcdef0123456789abcdef");
        let expected = "t=1700000000,v1=417adf36b901772f658597a76d329694e335e65fc0849d7715c3ca33406309b5";
        assert_eq!(key.signature(1_700_000_000, b"{}"), expected);
    }

    #[test]
    fn the_key_is_made_once_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("callback.key");
        let first = CallbackKey::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(first.0, CallbackKey::open(&path).unwrap().0);
        fs::write(&path, "short").unwrap();
        assert!(CallbackKey::open(&path).is_err());
    }
}
