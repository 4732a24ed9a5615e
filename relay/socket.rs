//! A client's socket, plain or behind TLS, read and written without a task of its own.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::ServerConnection;
use tokio::net::TcpStream;

/// What a connection reads from and its outbox is written to; like a [`TcpStream`]: whoever would have to
/// wait is told [`io::ErrorKind::WouldBlock`].
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    tls: Option<Box<Mutex<Tls>>>,
}

#[derive(Debug)]
struct Tls {
    session: ServerConnection,
    /// Whether there may be something to read that has come already.
    has_more: bool,
}

/// The stream, as rustls reads and writes.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Socket {
        Socket { stream, tls: None }
    }
}

impl Tls {
    fn read(&mut self, stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    self.has_more = true;
                    return read;
                }
            }
            self.has_more = false;
            if self.session.read_tls(&mut Raw(stream))? == 0 {
                return Ok(0); // cut without a farewell
            }
            let processed = self.session.process_new_packets();
            if let Err(error) = processed {
                // the alert that says why; the client may be gone
                let _ = self.flush(stream);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }

    fn write(&mut self, stream: &TcpStream, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        // what rustls keeps is bounded: more only when that has gone
        self.flush(stream)?;
        let taken = self.session.writer().write_vectored(bytes)?;
        match self.flush(stream) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self, stream: &TcpStream) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut Raw(stream))?;
        }
        Ok(())
    }
}

impl Socket {
    /// After a TLS handshake.
    pub fn secure(stream: TcpStream, session: ServerConnection) -> Socket {
        let has_more = true;
        let tls = Tls { session, has_more };
        Socket {
            stream,
            tls: Some(Box::new(Mutex::new(tls))),
        }
    }

    fn tls(&self) -> Option<MutexGuard<'_, Tls>> {
        let tls = self.tls.as_ref()?;
        Some(tls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until there may be something to read.
    pub async fn readable(&self) -> io::Result<()> {
        match self.tls().is_some_and(|tls| tls.has_more) {
            true => Ok(()),
            false => self.stream.readable().await,
        }
    }

    /// Waits until something may be written.
    pub async fn writable(&self) -> io::Result<()> {
        self.stream.writable().await
    }

    /// Reads what is there; nothing at the end.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.tls() {
            Some(mut tls) => tls.read(&self.stream, buffer),
            None => self.stream.try_read(buffer),
        }
    }

    /// Writes as much of these as is taken at once.
    pub fn try_write(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self.tls(), bytes) {
            (Some(mut tls), _) => tls.write(&self.stream, bytes),
            // send(2), which costs the kernel less than writev(2); and only for a socket that is full is it
            // looked up what tokio knows of it, which lies far from all else
            (None, [one]) => match socket2::SockRef::from(&self.stream).send(one) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.try_write(one)
                }
                written => written,
            },
            (None, _) => self.stream.try_write_vectored(bytes),
        }
    }

    /// Writes what was taken; false if something of it must wait.
    pub fn flush(&self) -> io::Result<bool> {
        match self.tls().map(|mut tls| tls.flush(&self.stream)) {
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Some(Err(error)) => Err(error),
            Some(Ok(())) | None => Ok(true),
        }
    }

    /// Says that nothing more comes.
    pub fn end(&self) -> io::Result<()> {
        if let Some(mut tls) = self.tls() {
            tls.session.send_close_notify();
        }
        self.flush()?;
        socket2::SockRef::from(&self.stream).shutdown(Shutdown::Write)
    }
}
