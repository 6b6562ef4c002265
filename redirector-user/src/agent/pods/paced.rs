//! Watches of the API server that end as soon as they begin: the client begins the next one at once, for ever.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::Request;
use tower::{Layer, Service};

use crate::agent::retry::pause;
use crate::agent::sync::lock;

/// A watch that ends earlier was of no use; servers end theirs after minutes.
const USEFUL: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// When the last watch began, and how many before it were of no use.
#[derive(Default)]
struct Pace {
    last: Option<Instant>,
    useless: u32,
}

impl Pace {
    /// How long the next one waits.
    fn next(&mut self, now: Instant) -> Duration {
        let was_useful = self.last.is_none_or(|last| now.saturating_duration_since(last) >= USEFUL);
        self.useless = if was_useful { 0 } else { self.useless.saturating_add(1) };
        let wait = if self.useless == 0 { Duration::ZERO } else { pause(self.useless, FIRST_PAUSE) };
        self.last = Some(now + wait);
        wait
    }
}

/// Makes a client wait before such a watch.
#[derive(Clone, Default)]
pub struct PacedLayer(Arc<Mutex<Pace>>);

impl<S> Layer<S> for PacedLayer {
    type Service = Paced<S>;

    fn layer(&self, inner: S) -> Paced<S> {
        Paced { inner, pace: Arc::clone(&self.0) }
    }
}

/// A client that does so.
pub struct Paced<S> {
    inner: S,
    pace: Arc<Mutex<Pace>>,
}

impl<S, B> Service<Request<B>> for Paced<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let wait = if is_watch { lock(&self.pace).next(Instant::now()) } else { Duration::ZERO };
        // It does nothing until it is polled.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            answer.await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_of_no_use_wait_longer_and_longer() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        assert_eq!(pace.next(begin), Duration::ZERO);
        let mut now = begin;
        let waits: Vec<Duration> = (0..12)
            .map(|_| {
                let wait = pace.next(now);
                now += wait + Duration::from_millis(1);
                wait
            })
            .collect();
        assert!(waits[0] >= FIRST_PAUSE / 2 && waits[11] >= Duration::from_secs(15), "{waits:?}");
        assert_eq!(pace.next(now + Duration::from_secs(300)), Duration::ZERO);
    }
}
