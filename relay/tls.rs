//! TLS: whom to believe that they are the server, and who the relay says that it is.
//!
//! Towards Postgres the words are libpq's:
//! <https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION>.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_platform_verifier::Verifier;
use thiserror::Error as ThisError;
use tokio::time::Instant;

/// How often the certificate's files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How far a server must show who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Not at all: what is said is hidden from those who listen, and from nobody else.
    Anybody,
    /// By a certificate that these have signed, for whatever name.
    Authority(Roots),
    /// The same, for the name that was asked for.
    Name(Roots),
}

/// Who may sign certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Those in a file, PEM.
    File(PathBuf),
    /// Those that the system trusts.
    System,
}

/// Why there is no TLS.
#[derive(Debug, ThisError)]
pub enum BadTls {
    /// A file cannot be read.
    #[error("{}: {error}; it must be a file of {what}, PEM", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// Why not.
        error: rustls::pki_types::pem::Error,
    },
    /// Certificate, key or roots are not what they must be.
    #[error("{0}")]
    Rustls(#[from] Error),
    /// None of the certificates in a file can sign others.
    #[error("{0}")]
    Roots(String),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let bad = |error| BadTls::File {
        path: path.to_owned(),
        what: "certificates",
        error,
    };
    let all = CertificateDer::pem_file_iter(path).map_err(bad)?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(bad)?;
    match all.is_empty() {
        true => Err(bad(rustls::pki_types::pem::Error::NoItemsFound)),
        false => Ok(all),
    }
}

/// A client that trusts so far.
pub fn client(trust: &Trust) -> Result<ClientConfig, BadTls> {
    let by_name = |roots: &Roots| -> Result<Arc<dyn ServerCertVerifier>, BadTls> {
        match roots {
            Roots::System => Ok(Arc::new(Verifier::new(provider())?)),
            Roots::File(path) => {
                let mut store = RootCertStore::empty();
                for certificate in certificates(path)? {
                    store.add(certificate)?;
                }
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(store.into(), provider()).build();
                Ok(verifier
                    .map_err(|error| BadTls::Roots(format!("{}: {error}", path.display())))?)
            }
        }
    };
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Name(roots) => by_name(roots)?,
        Trust::Authority(roots) => Arc::new(AnyName(by_name(roots)?)),
        Trust::Anybody => Arc::new(NoName(provider())),
    };
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}

/// Looks at who signed and not at what for.
#[derive(Debug)]
struct AnyName(Arc<dyn ServerCertVerifier>);

/// Looks at nothing but that the server has the key of the certificate that it shows.
#[derive(Debug)]
struct NoName(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // the name is the last thing that is looked at
        let AnyName(by_name) = self;
        match by_name.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl ServerCertVerifier for NoName {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate and key files of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and those that lead from it to a root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Who the relay says that it is; read again when the files change, as whoever renews certificates
/// expects.
pub struct Identity {
    files: Files,
    config: RwLock<Arc<ServerConfig>>,
    looked: Mutex<(Instant, [Option<SystemTime>; 2])>,
}

impl Identity {
    /// Reads the files.
    pub fn read(files: Files) -> Result<Identity, BadTls> {
        let changed = files.changed();
        Ok(Identity {
            config: RwLock::new(files.read()?),
            looked: Mutex::new((Instant::now(), changed)),
            files,
        })
    }

    /// As it is now.
    pub fn config(&self) -> Arc<ServerConfig> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.0.elapsed() >= LOOK_EVERY {
            let changed = self.files.changed();
            if changed != looked.1 {
                let certificate = self.files.certificate.display();
                match self.files.read() {
                    Ok(config) => {
                        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
                        tracing::info!(%certificate, "read the certificate again");
                    }
                    Err(error) => {
                        tracing::error!(%error, "could not read the certificate again: the old one goes on");
                    }
                }
            }
            *looked = (Instant::now(), changed);
        }
        drop(looked);
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        config.clone()
    }
}

impl Files {
    /// When each of them was written.
    fn changed(&self) -> [Option<SystemTime>; 2] {
        let written = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
        [written(&self.certificate), written(&self.key)]
    }

    fn read(&self) -> Result<Arc<ServerConfig>, BadTls> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| BadTls::File {
            path: self.key.clone(),
            what: "a private key",
            error,
        })?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path) -> Files {
        let made = rcgen::generate_simple_self_signed(vec!["relay.example".to_owned()]).unwrap();
        let files = Files {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
        };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_that_is_renewed_counts_soon_and_a_broken_one_never() {
        let folder = std::env::temp_dir().join(format!("crm-relay-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let identity = Identity::read(write(&folder)).unwrap();
        let first = identity.config();
        let later = |seconds| {
            let file = std::fs::File::open(folder.join("cert.pem")).unwrap();
            file.set_modified(SystemTime::now() + Duration::from_secs(seconds))
                .unwrap();
        };
        write(&folder);
        later(1);
        assert!(Arc::ptr_eq(&first, &identity.config()), "not at each look");
        tokio::time::advance(LOOK_EVERY).await;
        let second = identity.config();
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::write(folder.join("cert.pem"), "no certificate").unwrap();
        later(2);
        tokio::time::advance(LOOK_EVERY).await;
        assert!(
            Arc::ptr_eq(&second, &identity.config()),
            "the old one goes on"
        );
        assert!(Identity::read(identity.files.clone()).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
