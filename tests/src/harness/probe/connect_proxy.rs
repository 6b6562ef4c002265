//! The smallest HTTP proxy there can be: `CONNECT host:port`, then bytes both ways. The upstream of redsocks.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::print_line;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyEvent {
    Ready,
    /// A client asked for this destination.
    Asked(String),
}

pub fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| listen.to_string())?;
    print_line(&ProxyEvent::Ready)?;
    for client in listener.incoming() {
        let client = client?;
        std::thread::spawn(move || {
            // An error shows at the client.
            let _ = attend(client);
        });
    }
    Ok(())
}

fn attend(mut client: TcpStream) -> anyhow::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let target = line.split(' ').nth(1).context("no target")?.to_owned();
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    print_line(&ProxyEvent::Asked(target.clone()))?;
    let mut server = TcpStream::connect(&target)?;
    client.write_all(b"HTTP/1.0 200 connected\r\n\r\n")?;
    let (mut to_client, mut from_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    io::copy(&mut reader, &mut server)?;
    server.shutdown(Shutdown::Write)?;
    Ok(())
}
