//! Reloads, kills and stops under load. They take minutes: `scripts/proxies-under-load` runs them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::mint;
use crate::{Seam, with_each};

/// Clients that ask at the same time.
const CLIENTS: usize = 4;

/// What clients have seen.
#[derive(Default)]
struct Seen {
    is_over: AtomicBool,
    allowed: AtomicUsize,
    refused: AtomicUsize,
    failed: AtomicUsize,
}

impl Seen {
    fn count(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::Relaxed)
    }

    /// Asks until it is over: every second request has to be refused. `may_fail`: while the gateway
    /// is away, requests may fail, but none that must be refused gets in.
    async fn client(&self, kind: &str, seam: &Seam, may_fail: bool) {
        let editor = mint::token(&["editor"]);
        while !self.is_over.load(Ordering::Relaxed) {
            for token in [None, Some(&editor)] {
                let target = if token.is_some() { "/pages/allowed" } else { "/pages/refused" };
                let mut request = seam.get(target);
                if let Some(token) = token {
                    request = request.bearer(token);
                }
                let bytes = request.bytes();
                let asked = tokio::time::timeout(Duration::from_secs(40), seam.raw(&bytes));
                let answer = asked.await;
                let status = answer.ok().flatten().map_or(0, |response| response.status);
                let counter = match (status, token.is_some()) {
                    (200, true) => &self.allowed,
                    (401, false) => &self.refused,
                    (0 | 500.., _) if may_fail => &self.failed,
                    _ => panic!("{kind}: {status} for {target}\n{}", seam.proxy.errors()),
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
#[ignore = "takes minutes: scripts/proxies-under-load"]
async fn a_hundred_reloads_under_load_refuse_nothing() {
    with_each(async |kind, seam| {
        let seen = Seen::default();
        let reloads = async {
            for _ in 0..100 {
                assert_eq!(seam.gateway.hang_up().await["message"], "reloaded");
            }
            seen.end();
        };
        let one = || seen.client(kind, &seam, false);
        tokio::join!(reloads, one(), one(), one(), one());
        let (allowed, refused) = (Seen::count(&seen.allowed), Seen::count(&seen.refused));
        assert!(allowed >= 100 && refused >= 100, "{kind}: too little load");
        assert!(seam.reached("refused").is_empty(), "{kind}");
        assert_eq!(seam.reached("allowed").len(), allowed, "{kind}");
        println!("{kind}: 100 reloads, {CLIENTS} clients: {allowed} passed, {refused} were refused, 0 wrongly");
    })
    .await;
}

#[tokio::test]
#[ignore = "takes minutes: scripts/proxies-under-load"]
async fn kills_and_stops_under_load_let_nothing_in() {
    with_each(async |kind, mut seam| {
        let seen = Seen::default();
        for round in 0..20 {
            let (is_stop, pause) = (round % 2 == 1, Duration::from_millis(37 * (round % 7) + 20));
            seen.is_over.store(false, Ordering::Relaxed);
            {
                let seam = &seam;
                let away = async {
                    // Any moment of a question, and not an event, is what is tested.
                    tokio::time::sleep(pause).await;
                    if is_stop {
                        seam.gateway.freeze().await;
                        tokio::time::sleep(2 * pause).await;
                        seam.gateway.signal("CONT");
                    } else {
                        seam.gateway.signal("KILL");
                        seam.gateway.exited().await;
                    }
                    tokio::time::sleep(pause).await;
                    seen.end();
                };
                let one = || seen.client(kind, seam, true);
                tokio::join!(away, one(), one(), one(), one());
            }
            if !is_stop {
                seam.gateway.kill_and_restart().await;
            }
            // What it should let in gets in again.
            let editor = mint::token(&["editor"]);
            for attempt in 0.. {
                let response = seam.get("/pages/again").bearer(&editor).send().await;
                if response.status == 200 {
                    break;
                }
                assert!(response.status >= 500 && attempt < 100, "{kind}: {response:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        assert!(seam.reached("refused").is_empty(), "{kind}");
        let [allowed, refused, failed] =
            [&seen.allowed, &seen.refused, &seen.failed].map(Seen::count);
        println!("{kind}: 10 kills and 10 stops: {allowed} passed, {refused} were refused, {failed} failed, 0 let in wrongly");
    })
    .await;
}
