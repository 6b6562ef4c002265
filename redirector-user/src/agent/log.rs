//! Logs: tracing, as text or as JSON, a line an event, on standard error.

use tracing::level_filters::LevelFilter;

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: an object a line.
    Json,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[expect(missing_docs, reason = "the usual names")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Sets the process's logger up.
pub fn init(format: Format, level: Level) {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    // Somebody who embeds us may have a logger already.
    let _ = match format {
        Format::Text => builder.with_ansi(false).with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
