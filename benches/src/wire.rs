//! A minimal gateway client, which adds little to the measured cost: HTTP with one request per connection, and
//! WebSocket frames.

use bytes::{Buf, Bytes, BytesMut};
use gateway_client::resume::{self, Start};
use jupyter_protocol::codec::websocket_v1;
use jupyter_protocol::{Channel, WireMessage};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Result;

/// Size of the read buffer.
const READ_BYTES: usize = 256 << 10;

/// A gateway's address and token.
#[derive(Clone)]
pub struct Address {
    /// The port on 127.0.0.1.
    pub port: u16,
    /// The token; empty if the gateway requires none.
    pub token: String,
}

impl Address {
    async fn request(&self, method: &str, path: &str, more: &str, body: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let authorization = match self.token.as_str() {
            "" => String::new(),
            token => format!("Authorization: token {token}\r\n"),
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n{authorization}{more}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        Ok(stream)
    }

    /// Sends a request and returns the JSON of its response, or `null` without a body.
    ///
    /// # Errors
    /// If there is no response, or its status is not a success.
    pub async fn call(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let mut stream = self.request(method, path, "Connection: close\r\n", body).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or("the response's head does not end")?;
        if !head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
            return Err(format!("{method} {path}: {answer}").into());
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_str(body)?)
    }

    /// Starts a kernel and returns its id.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn start_kernel(&self, spec: &str) -> Result<String> {
        let kernel = self
            .call("POST", "/api/kernels", &serde_json::json!({"name": spec}).to_string())
            .await?;
        Ok(kernel["id"].as_str().ok_or("the kernel has no id")?.to_owned())
    }

    /// Ends a kernel.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn end_kernel(&self, id: &str) -> Result<()> {
        self.call("DELETE", &format!("/api/kernels/{id}"), "").await.map(drop)
    }

    /// Opens a kernel's WebSocket with the v1 subprotocol.
    ///
    /// # Errors
    /// If it is refused or has another subprotocol.
    pub async fn channels(&self, kernel: &str, session: &str) -> Result<WebSocket> {
        let path = format!("/api/kernels/{kernel}/channels?session_id={session}");
        self.upgrade(&path, websocket_v1::SUBPROTOCOL).await
    }

    /// Opens a kernel's WebSocket with the resume protocol, beginning at `start`.
    ///
    /// # Errors
    /// If it is refused or has another subprotocol.
    pub async fn resume(&self, kernel: &str, start: Start) -> Result<WebSocket> {
        let path = format!("/api/kernels/{kernel}/channels?resume={start}");
        self.upgrade(&path, resume::SUBPROTOCOL).await
    }

    async fn upgrade(&self, path: &str, subprotocol: &str) -> Result<WebSocket> {
        let upgrade = format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {subprotocol}\r\n"
        );
        let mut stream = self.request("GET", path, &upgrade, "").await?;
        let mut received = BytesMut::new();
        let end = loop {
            if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err("the connection ended in the handshake".into());
            }
        };
        let head = String::from_utf8(received.split_to(end).to_vec())?;
        if !head.starts_with("HTTP/1.1 101") || !head.contains(subprotocol) {
            return Err(format!("no WebSocket of the subprotocol {subprotocol}: {head}").into());
        }
        Ok(WebSocket { stream, received })
    }
}

/// A WebSocket with the requested subprotocol.
pub struct WebSocket {
    stream: TcpStream,
    received: BytesMut,
}

const CONTINUATION: u8 = 0;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const BINARY: u8 = 2;
const FIN: u8 = 0x80;

impl WebSocket {
    /// Sends a message.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn send(&mut self, channel: Channel, message: &WireMessage) -> Result<()> {
        let payload = websocket_v1::encode(channel, message);
        self.write(BINARY, &payload).await
    }

    /// Writes a frame. Clients must mask frames; a mask of zeros does not change the payload.
    async fn write(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        let mut frame = vec![FIN | opcode];
        match payload.len() {
            length @ 0..126 => frame.push(0x80 | length as u8),
            length @ 126..0x1_0000 => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(payload);
        Ok(self.stream.write_all(&frame).await?)
    }

    /// Returns the next message's bytes, or `None` if the server closed the connection. Answers Pings. Not cancel-safe
    /// while it answers a Ping or receives a fragmented message.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn receive(&mut self) -> Result<Option<Bytes>> {
        let mut message = BytesMut::new();
        loop {
            let (first, payload) = loop {
                if let Some(frame) = self.take_frame() {
                    break frame;
                }
                self.received.reserve(READ_BYTES);
                if self.stream.read_buf(&mut self.received).await? == 0 {
                    return Ok(None);
                }
            };
            match first & 0x0f {
                CLOSE => return Ok(None),
                PING => self.write(PING + 1, &payload).await?,
                opcode if opcode > CLOSE => {}
                opcode => {
                    if first & FIN != 0 && opcode != CONTINUATION {
                        return Ok(Some(payload));
                    }
                    message.extend_from_slice(&payload);
                    if first & FIN != 0 {
                        return Ok(Some(message.freeze()));
                    }
                }
            }
        }
    }

    /// Returns the next message and its channel.
    ///
    /// # Errors
    /// If the connection is lost or has ended.
    pub async fn receive_message(&mut self) -> Result<(Channel, WireMessage)> {
        let data = self.receive().await?.ok_or("the WebSocket was closed")?;
        Ok(websocket_v1::decode(&data)?)
    }

    /// Takes the first byte and payload of the next frame, if it has arrived completely.
    fn take_frame(&mut self) -> Option<(u8, Bytes)> {
        let mut head = &self.received[..];
        if head.remaining() < 2 {
            return None;
        }
        let (first, length) = (head.get_u8(), head.get_u8());
        let length = match length & 0x7f {
            126 if head.remaining() >= 2 => usize::from(head.get_u16()),
            127 if head.remaining() >= 8 => usize::try_from(head.get_u64()).ok()?,
            short @ 0..126 => usize::from(short),
            _ => return None,
        };
        let head = self.received.len() - head.remaining();
        if self.received.len() < head + length {
            return None;
        }
        self.received.advance(head);
        Some((first, self.received.split_to(length).freeze()))
    }
}
