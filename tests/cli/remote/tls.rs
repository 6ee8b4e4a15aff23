//! Encryption: who vouches for a server, who does not, and a proxy on the way.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::http_server::{Answer, Server};
use super::*;

/// An authority of our own.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server with a model, as the authority says it is `name`, from 2000 until the given year.
fn server(authority: &CertifiedIssuer<'static, KeyPair>, name: &str, until: i32) -> Server {
    let mut params = CertificateParams::new([name.to_string()]).unwrap();
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate: CertificateDer<'static> = params.signed_by(&key, authority).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key.into()).unwrap();
    Server::tls(Arc::new(config), |request| Answer::range(request, &model(), "\"e\""))
}

/// What `inspect` of an address says with those variables alone: whether it could, and its words.
fn inspect(url: &str, variables: &[(&str, &str)]) -> (bool, String) {
    let home = tempfile::tempdir().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_moeplan"));
    program.args(["inspect", "--json", url]).env_clear().env("HOME", home.path());
    let output = program.envs(variables.iter().copied()).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 2)), "{output:?}");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_authority_of_ones_own_is_trusted_when_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let file = folder.path().join("company.pem");
    fs::write(&file, authority.pem()).unwrap();
    let server = server(&authority, "localhost", 2100);
    let url = server.url("/m.gguf").replace("127.0.0.1", "localhost");
    for (name, value) in [("SSL_CERT_FILE", text(&file)), ("SSL_CERT_DIR", text(folder.path()))] {
        let (good, said) = inspect(&url, &[(name, value)]);
        assert!(good, "{name}: {said}");
    }
}

#[test]
fn a_server_for_which_nobody_vouches_is_not_read() {
    let authority = authority();
    let server = server(&authority, "localhost", 2100);
    let url = server.url("/m.gguf").replace("127.0.0.1", "localhost");
    let (good, said) = inspect(&url, &[]);
    assert!(!good && said.contains("no secure connection (TLS)") && said.contains("UnknownIssuer"), "{said}");
    assert!(said.contains("SSL_CERT_FILE"), "{said}");
    assert_eq!(server.paths().len(), 0, "nothing was asked of it");
}

#[test]
fn a_certificate_of_another_host_or_time_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let file = folder.path().join("company.pem");
    fs::write(&file, authority.pem()).unwrap();
    for (name, until, why) in [("hub.test", 2100, "not valid for name"), ("localhost", 2001, "expired")] {
        let server = server(&authority, name, until);
        let url = server.url("/m.gguf").replace("127.0.0.1", "localhost");
        let (good, said) = inspect(&url, &[("SSL_CERT_FILE", text(&file))]);
        assert!(!good && said.contains(why), "{name}: {said}");
        assert!(said.contains("hint: check the address, the clock"), "{said}");
        assert_eq!(server.paths().len(), 0);
    }
}

#[test]
fn authorities_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "no certificate\n").unwrap();
    let nowhere = folder.path().join("nowhere.pem");
    for (file, why) in [(nowhere, "nowhere.pem"), (empty, "does not name a PEM certificate")] {
        let (good, said) = inspect("https://localhost:1/m.gguf", &[("SSL_CERT_FILE", text(&file))]);
        assert!(!good && said.contains("SSL_CERT_FILE") && said.contains(why), "{said}");
    }
}

/// A proxy that leads every tunnel to `target`, and whom it was asked for.
fn proxy(target: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = asked.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (target, kept) = (target.clone(), kept.clone());
            std::thread::spawn(move || tunnel(client, &target, &kept));
        }
    });
    (address, asked)
}

/// Bytes both ways, until one side ends.
fn tunnel(mut client: TcpStream, target: &str, asked: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    asked.lock().unwrap().push(line.trim_end().to_string());
    while reader.read_line(&mut line).is_ok_and(|count| count > 2) {}
    let mut server = TcpStream::connect(target).unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let (mut back, mut answer) = (client, server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answer, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut reader, &mut server);
    let _ = server.shutdown(Shutdown::Both);
}

#[test]
fn a_proxy_is_used_except_for_hosts_that_it_is_not_for() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let file = folder.path().join("company.pem");
    fs::write(&file, authority.pem()).unwrap();
    let server = server(&authority, "hub.test", 2100);
    let (proxy, asked) = proxy(server.address.replace("https://", ""));
    let variables = [("SSL_CERT_FILE", text(&file)), ("HTTPS_PROXY", &proxy)];
    let (good, said) = inspect("https://hub.test/m.gguf", &variables);
    assert!(good, "{said}");
    let tunnels = asked.lock().unwrap().clone();
    assert!(!tunnels.is_empty() && tunnels.iter().all(|line| line.starts_with("CONNECT hub.test:443 ")), "{tunnels:?}");

    let (good, said) = inspect("https://hub.test/m.gguf", &[variables[0], variables[1], ("NO_PROXY", "hub.test")]);
    assert!(!good && said.contains("hint:"), "{said}");
    assert_eq!(asked.lock().unwrap().len(), tunnels.len(), "the proxy is not asked");
}
