//! `/metrics`, `/healthz` and `/readyz`.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::health::Health;
use super::metrics::Metrics;
use crate::base::error::{Context, Result};
use crate::instance::directory::Directory;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Scrapers and probes are few; more wait in the backlog.
const MAX_CONNECTIONS: usize = 32;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
const BACKLOG: i32 = 128;
const PORT_RETRY_INTERVAL: Duration = Duration::from_millis(200);
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What the answers are made from.
pub struct State {
    pub root: Directory,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
}

/// What an address is for. Each has connections of its own: pods may reach the metrics, and a client that holds all
/// connections there must not make a probe fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `--http`: the metrics, and the state of the agent.
    Everything,
    /// `--probes`: the state only.
    Probes,
}

impl Purpose {
    fn option(self) -> &'static str {
        match self {
            Self::Everything => "--http",
            Self::Probes => "--probes",
        }
    }

    fn paths(self) -> &'static str {
        match self {
            Self::Everything => "/metrics, /healthz and /readyz",
            Self::Probes => "/healthz and /readyz",
        }
    }
}

/// Opens the port; None if it is taken. In a rollout on the host's network the old agent still has it.
///
/// # Errors
///
/// Any other of the kernel's.
pub fn bind(at: SocketAddr, purpose: Purpose) -> Result<Option<TcpListener>> {
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, at.port()));
    let bound = match listen(at) {
        // A kernel without IPv6 has no [::].
        Err(Errno::AFNOSUPPORT) if at.ip() == Ipv6Addr::UNSPECIFIED => listen(everywhere),
        other => other,
    };
    match bound {
        Err(Errno::ADDRINUSE) => Ok(None),
        other => {
            let listener = other.map_err(std::io::Error::from).and_then(TcpListener::from_std);
            listener.map(Some).context(|| format!("listen on {at} ({})", purpose.option()))
        }
    }
}

/// As `TcpListener::bind`; and [::] is for IPv4, too, whatever net.ipv6.bindv6only says.
fn listen(at: SocketAddr) -> Result<std::net::TcpListener, Errno> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if at.ip() == Ipv6Addr::UNSPECIFIED {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Answers for ever, as soon as it can have the port.
pub async fn serve(at: SocketAddr, purpose: Purpose, mut bound: Option<TcpListener>, state: Arc<State>) {
    if bound.is_none() {
        tracing::warn!(%at, "the address of {} is in use; trying again until it is free", purpose.option());
    }
    let listener = loop {
        match bound.take() {
            Some(listener) => break listener,
            None => tokio::time::sleep(PORT_RETRY_INTERVAL).await,
        }
        bound = bind(at, purpose).unwrap_or(None);
    };
    if let Ok(at) = listener.local_addr() {
        tracing::info!(%at, "serving {}", purpose.paths());
    }
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Without a pause this would spin while descriptors are short.
            tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
            continue;
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), purpose, request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client that hangs up needs no answer.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(permit);
        });
    }
}

async fn answer(
    state: Arc<State>,
    purpose: Purpose,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into()));
    }
    Ok(match request.uri().path() {
        "/metrics" if purpose == Purpose::Everything => metrics(state).await,
        "/healthz" => check(state.health.alive()),
        "/readyz" => check(state.health.ready()),
        _ => plain(StatusCode::NOT_FOUND, format!("there are {}\n", purpose.paths())),
    })
}

async fn metrics(state: Arc<State>) -> Response<Full<Bytes>> {
    let text = tokio::task::spawn_blocking(move || state.metrics.text(&state.root)).await;
    let Ok(Ok(text)) = text else {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n".into());
    };
    let mut response = plain(StatusCode::OK, text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
    response
}

fn check(result: Result<&'static str, String>) -> Response<Full<Bytes>> {
    match result {
        Ok(text) => plain(StatusCode::OK, format!("{text}\n")),
        Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
