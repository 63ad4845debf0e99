use std::time::Duration;

use super::source::{read, toml, yaml};
use super::*;
use crate::engine::{Context, Engine, ResponseStream, engine_fn};
use crate::error::ErrorKind;

fn vars(said: &[(&str, &str)]) -> Result<RuntimeConfig> {
    let said = said.iter().map(|(key, value)| (format!("DYNAMO_RUNTIME_{key}"), (*value).into()));
    RuntimeConfig::from_vars(said)
}

/// Understands `text` as a file of this name would be.
fn file(name: &str, text: &str) -> Result<RuntimeConfig> {
    let parse = if name == "toml" { toml } else { yaml };
    let tree = parse(text).map_err(|why| Error::invalid(format!("{name}: {why}")))?;
    read(tree, |path| format!("{name}: {}", path.join(".")))
}

/// Says what is refused, and that the refusal is of the kind it should be.
#[track_caller]
fn refused(config: Result<RuntimeConfig>) -> String {
    let error = config.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    error.message().to_owned()
}

#[test]
fn nothing_said_is_all_in_memory() {
    for config in [
        RuntimeConfig::default(),
        RuntimeConfig::from_vars([("DYNAMO_MODEL".into(), "x".into())]).unwrap(),
        vars(&[("DISCOVERY", "memory"), ("REQUEST_PLANE", "memory")]).unwrap(),
    ] {
        assert!(matches!(config.discovery, DiscoveryConfig::Memory));
        assert!(matches!(config.request_plane, RequestPlaneConfig::Memory));
        assert!(matches!(config.event_plane, EventPlaneConfig::Memory));
    }
    assert!(RuntimeConfig::from_env().is_ok());
}

#[test]
fn variables_that_cannot_be_meant_are_named() {
    for (said, expected) in [
        (&[("PLANE", "tcp")][..], "PLANE is not known, only discovery, request_plane, event_plane"),
        (&[("DISCOVERY", "ectd")], "DISCOVERY is not known: one of memory"),
        (&[("DISCOVERY__ECTD__TTL", "5s")], "DISCOVERY__ECTD is not known: one of memory"),
        (&[("DISCOVERY__MEMORY__SIZE", "1")], "DISCOVERY__MEMORY__SIZE is not known"),
        (&[("DISCOVERY__MEMORY", "1")], "DISCOVERY__MEMORY takes no value"),
        (&[("DISCOVERY", "memory"), ("DISCOVERY__MEMORY", "1")], "DISCOVERY__MEMORY stands beside"),
        (&[("DISCOVERY__MEMORY", "1"), ("DISCOVERY", "memory")], "DISCOVERY stands beside"),
        (&[("DISCOVERY__MEMORY", "1"), ("DISCOVERY__X", "")], "DISCOVERY says more than one thing"),
        (&[("", "x")], "variable DYNAMO_RUNTIME_ is not known"),
        (&[("DISCOVERY____", "x")], "DISCOVERY__ is not known"),
    ] {
        let message = refused(vars(said));
        assert!(message.contains(expected), "{said:?}: {message}");
    }
}

#[cfg(feature = "tcp")]
mod tcp {
    use super::*;

    fn said(config: RuntimeConfig) -> request_plane::TcpConfig {
        match config.request_plane {
            RequestPlaneConfig::Tcp(config) => *config,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn variables_set_what_code_sets() {
        let config = said(
            vars(&[
                ("REQUEST_PLANE__TCP__LISTEN", "0.0.0.0:7000"),
                ("REQUEST_PLANE__TCP__ADVERTISE", "10.0.0.1:0"),
                ("REQUEST_PLANE__TCP__PLAINTEXT_ALLOWED", "true"),
                ("REQUEST_PLANE__TCP__LIMITS__STREAMS_MAX", "17"),
                ("REQUEST_PLANE__TCP__LIMITS__DEAD_AFTER", "5s"),
                ("REQUEST_PLANE__TCP__REQUESTS_MAX", "170"),
            ])
            .unwrap(),
        );
        assert_eq!(config.listen, Some("0.0.0.0:7000".parse().unwrap()));
        assert_eq!(config.advertise, Some("10.0.0.1:0".parse().unwrap()));
        assert!(config.plaintext_allowed);
        let default = request_plane::TcpConfig::default().limits;
        assert_eq!((config.limits.streams_max, config.limits.ping_after), (17, default.ping_after));
        assert_eq!((config.limits.dead_after, config.requests_max), (Duration::from_secs(5), 170));
        assert_eq!(said(vars(&[("REQUEST_PLANE", "tcp")]).unwrap()).listen, None);
    }

    #[test]
    fn bad_values_are_named_and_never_shown() {
        for (key, value, why) in [
            ("LISTEN", "canary:1", "invalid socket address syntax"),
            ("PLAINTEXT_ALLOWED", "canary", "is not a boolean"),
            ("LIMITS__STREAMS_MAX", "canary", "is not u32"),
            ("LIMITS__STREAMS_MAX", "5000000000", "is not u32"),
            ("LIMITS__STREAMS_MAX", "-1", "is not u32"),
            ("LIMITS__DEAD_AFTER", "canary", "is no time such as 200ms, 5s, 1m or 2h"),
            ("LIMITS__DEAD", "5s", "is not known, only stream_window"),
            ("LIMITS", "canary", "is not a table of keys"),
            ("CODEC", "canary", "is not known: one of bincode"),
            ("LISTEN__PORT", "1", "is a table, not socket address"),
        ] {
            let message = refused(vars(&[(&format!("REQUEST_PLANE__TCP__{key}"), value)]));
            let name = format!("DYNAMO_RUNTIME_REQUEST_PLANE__TCP__{key}");
            let place = name.trim_end_matches("__PORT");
            assert!(message.contains(&format!("variable {place} ")), "{message}");
            assert!(message.contains(why) && !message.contains("canary"), "{message}");
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn tls_files_are_said_by_their_paths() {
        let tls = |key: &str| format!("REQUEST_PLANE__TCP__TLS__{key}");
        let (cluster, roots) = (tls("CLUSTER"), tls("ROOTS"));
        let (certificate, reload) = (tls("CERTIFICATE"), tls("RELOAD_EVERY"));
        let config = vars(&[
            (&cluster, "blue"),
            (&roots, "/ca.pem"),
            (&certificate, "/tls.pem, /tls.key"),
            (&reload, "1m"),
        ]);
        let tls = said(config.unwrap()).tls.unwrap();
        let pem = request_plane::Pem::file;
        assert_eq!((tls.cluster.as_str(), tls.roots), ("blue", pem("/ca.pem")));
        assert_eq!(tls.certificate, Some((pem("/tls.pem"), pem("/tls.key"))));
        assert_eq!(tls.reload_every, Some(Duration::from_secs(60)));
        assert!(!tls.anonymous_clients_allowed);
        let message = refused(vars(&[(&cluster, "blue")]));
        assert!(message.ends_with("REQUEST_PLANE__TCP__TLS__ROOTS is missing"), "{message}");
        let message = refused(vars(&[(&cluster, "Blue"), (&roots, "/ca.pem")]));
        assert!(message.contains("TLS__CLUSTER name \"Blue\" must match"), "{message}");
        let message = refused(vars(&[(&cluster, "b"), (&roots, "/r"), (&certificate, "/only")]));
        assert!(message.contains("TLS__CERTIFICATE has 1 items"), "{message}");
    }
}

#[cfg(all(feature = "etcd", feature = "nats", feature = "toml", feature = "yaml"))]
#[test]
fn the_same_is_said_in_toml_and_in_yaml() {
    let as_toml = r#"
        request_plane = "tcp"
        [discovery.etcd]
        endpoints = ["http://10.0.0.1:2379", "http://10.0.0.2:2379"]
        ttl = "10s"
        user = ["name", "canary"]
        [event_plane.nats]
        backlog_max = 7
        publisher = 5
        access = { url = "nats://10.0.0.3", identity.user = { name = "n", password = "canary" } }
    "#;
    let as_yaml = "
request_plane:
  tcp:
discovery:
  etcd:
    endpoints: [http://10.0.0.1:2379, http://10.0.0.2:2379]
    ttl: 10s
    user: [name, canary]
event_plane:
  nats:
    backlog_max: 7
    publisher: 5
    access:
      url: nats://10.0.0.3
      identity: {user: {name: n, password: canary}}
";
    let (a, b) = (file("toml", as_toml).unwrap(), file("yaml", as_yaml).unwrap());
    assert_eq!(format!("{a:?}"), format!("{b:?}"));
    let DiscoveryConfig::Etcd(etcd) = a.discovery else { unreachable!() };
    assert_eq!((etcd.endpoints.len(), etcd.ttl.as_secs(), &*etcd.root), (2, 10, "/dynamo"));
    assert_eq!(etcd.user, Some(("name".into(), "canary".into())));
    let EventPlaneConfig::Nats(nats) = a.event_plane else { unreachable!() };
    assert_eq!((nats.backlog_max, &*nats.root), (7, "dynamo"));
    assert_eq!(nats.publisher, Some(crate::protocol::InstanceId(5)));
    let crate::nats::NatsIdentity::User { name, password } = nats.access.identity else {
        unreachable!()
    };
    assert_eq!((&*name, &*password), ("n", "canary"));
}

#[cfg(all(feature = "nats", feature = "toml", feature = "yaml"))]
#[test]
fn every_limit_over_nats_is_said_alike_in_files_and_variables_and_the_rest_is_as_in_code() {
    let limits = [
        ("stream_window", "5000"),
        ("connection_window", "6000"),
        ("streams_max", "7"),
        ("assembly_bytes_max", "8000"),
        ("ping_after", "\"3s\""),
        ("dead_after", "\"1m\""),
        ("idle_after", "\"9m\""),
    ];
    let said = |config: Result<RuntimeConfig>| match config.unwrap().request_plane {
        RequestPlaneConfig::Nats(config) => *config,
        other => unreachable!("{other:?}"),
    };
    let usual = request_plane::NatsRequestPlaneConfig::new("nats://h");
    let in_toml = |limits: &str| {
        let text = format!(
            "[request_plane.nats]\naccess.url = 'nats://h'\n[request_plane.nats.limits]\n{limits}"
        );
        file("toml", &text)
    };
    let in_yaml = |limits: &str| {
        let text = "request_plane: {nats: {access: {url: nats://h}, limits: {LIMITS}}}";
        file("yaml", &text.replace("LIMITS", limits))
    };
    let url = ("REQUEST_PLANE__NATS__ACCESS__URL", "nats://h");
    for (key, value) in limits {
        let variable = format!("REQUEST_PLANE__NATS__LIMITS__{}", key.to_uppercase());
        let by_variable = vars(&[url, (&variable, value.trim_matches('"'))]);
        let all = [
            in_toml(&format!("{key} = {value}")),
            in_yaml(&format!("{key}: {value}")),
            by_variable,
        ];
        let [a, b, c] = all.map(|config| format!("{:?}", said(config)));
        assert!(a == b && b == c && a != format!("{usual:?}"), "{key}: {a} {b} {c}");
    }
    assert_eq!(format!("{:?}", said(vars(&[url]))), format!("{usual:?}"));
    let one = said(in_toml("streams_max = 7")).limits;
    assert_eq!((one.streams_max, one.dead_after), (7, usual.limits.dead_after));
    let all = limits.map(|(key, value)| format!("{key} = {value}")).join("\n");
    let all = said(in_toml(&all)).limits;
    assert_eq!((all.stream_window, all.connection_window), (5000, 6000));
    assert_eq!((all.streams_max, all.assembly_bytes_max), (7, 8000));
    assert_eq!((all.ping_after.as_secs(), all.dead_after.as_secs()), (3, 60));

    for (config, expected) in [
        (in_toml("dead = 1"), "toml: request_plane.nats.limits.dead is not known, only stream_win"),
        (in_yaml("dead: 1"), "yaml: request_plane.nats.limits.dead is not known"),
        (in_toml("dead_after = 5"), "request_plane.nats.limits.dead_after is an integer"),
        (
            vars(&[url, ("REQUEST_PLANE__NATS__LIMITS__DEAD", "1")]),
            "variable DYNAMO_RUNTIME_REQUEST_PLANE__NATS__LIMITS__DEAD is not known",
        ),
    ] {
        let message = refused(config);
        assert!(message.contains(expected), "{message}");
    }
}

#[cfg(all(feature = "nats", feature = "toml", feature = "yaml"))]
#[test]
fn what_is_wrong_in_a_file_is_named_by_its_key_and_never_shown() {
    for (text, expected) in [
        ("discoveri = 1", "toml: discoveri is not known, only discovery"),
        ("request_plane.nats.acces = 1", "toml: request_plane.nats.acces is not known"),
        ("request_plane = 1", "toml: request_plane is not known: one of memory"),
        ("request_plane.nats.root = 'r'", "toml: request_plane.nats.access is missing"),
        ("event_plane.nats.access.url = 5", "toml: event_plane.nats.access.url is an integer"),
        (
            "[event_plane.nats.access]\nurl = ''\ntls_required = 'canary'",
            "is a text, not a boolean",
        ),
        ("[event_plane.nats.access]\nurl = ''\nidentity.canary = 1", "access.identity.canary"),
        ("[event_plane.nats.access]\nurl = ''\nidentity.token = {}", "identity.token is a table"),
        ("[event_plane]\nnats = 'canary' x", "toml: line 2: "),
        ("a = 1\na = 2", "toml: line 2: "),
        ("discovery = 1979-05-27", "toml: discovery."),
        (
            "discovery.static = [{ endpoint = 'n/c/e', id = 1 }]",
            "discovery.static.0.address is missing",
        ),
        (
            "discovery.static = [{ endpoint = 'n/c', id = 1, address = 'a' }]",
            "discovery.static endp",
        ),
        ("discovery.static = {}", "toml: discovery.static is a table, not"),
    ] {
        let message = refused(file("toml", text));
        assert!(message.contains(expected), "{text:?}: {message}");
        assert!(!message.contains("'canary'"), "{message}");
    }
    for (text, expected) in [
        ("discoveri: 1", "yaml: discoveri is not known"),
        (
            "event_plane: {nats: {access: {url: nats://h, identity: {token: 5}}}}",
            "identity.token is",
        ),
        ("event_plane: {nats: {access: canary}}", "yaml: event_plane.nats.access is not a table"),
        ("a: [canary", "yaml: "),
        ("a: 1\na: 2", "yaml: "),
        ("- 1", "yaml:  is not a table of keys"),
    ] {
        let message = refused(file("yaml", text));
        assert!(message.contains(expected), "{text:?}: {message}");
        assert!(!message.contains("canary"), "{message}");
    }
}

#[cfg(all(
    feature = "etcd",
    feature = "file",
    feature = "nats",
    feature = "tls",
    feature = "toml"
))]
#[test]
fn the_page_lists_all_keys_and_no_other_and_its_file_is_good() {
    let page = include_str!("../../../docs/configuration.md");
    let complete = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let config = file("toml", complete).unwrap();
    assert!(matches!(config.request_plane, RequestPlaneConfig::Tcp(tcp) if tcp.tls.is_some()));
    // What comes behind is of another crate.
    let page = page.split("## Transfer agents").next().unwrap();
    let mut listed: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    listed.iter_mut().for_each(|line| *line = line.split('`').next().unwrap());
    let mut known = Vec::new();
    let mut tables = std::collections::BTreeMap::from([("discovery.static", "[{ no_key = 1 }]")]);
    for table in [
        "discovery.file",
        "discovery.etcd",
        "request_plane.tcp",
        "request_plane.tcp.limits",
        "request_plane.tcp.tls",
        "request_plane.nats",
        "request_plane.nats.access",
        "request_plane.nats.limits",
        "event_plane.nats",
    ] {
        tables.insert(table, "{ no_key = 1 }");
    }
    for (table, text) in tables {
        let message = refused(file("toml", &format!("{table} = {text}")));
        let keys = message.split(" is not known, only ").nth(1).unwrap();
        known.extend(keys.split(", ").map(|key| format!("{table}.{key}")));
    }
    known.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, known);
}

#[cfg(all(feature = "toml", feature = "yaml"))]
#[test]
fn no_file_exhausts_the_stack_or_the_memory() {
    let deep = "[".repeat(100_000);
    refused(file("toml", &format!("a = {deep}")));
    refused(file("yaml", &deep));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let last = vec![format!("*a{}", level - 1); 9].join(", ");
        bomb += &format!("a{level}: &a{level} [{last}]\n");
    }
    refused(file("yaml", &bomb));
}

#[cfg(feature = "toml")]
#[test]
fn files_are_found_told_apart_and_limited() {
    let folder = std::env::temp_dir().join(format!("dynamo-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = |name: &str| folder.join(name);
    let said = "[request_plane]\nmemory = {}\n[discovery]\nmemori = {}\n";
    std::fs::write(path("a.toml"), said).unwrap();
    std::fs::write(path("a.ini"), said).unwrap();
    std::fs::write(path("b.toml"), "# ".repeat(3 << 20)).unwrap();
    std::fs::write(path("c.toml"), [b'#', 0xff]).unwrap();
    std::fs::write(path("d.toml"), "discovery = 'memory'").unwrap();
    let of = |name: &str| RuntimeConfig::from_file(path(name));
    let message = refused(of("a.toml"));
    assert!(message.contains("a.toml: discovery.memori is not known"), "{message}");
    assert!(refused(of("a.ini")).contains("a.ini is neither .toml nor .yaml"));
    for name in ["b.toml", "c.toml"] {
        assert!(refused(of(name)).contains(name));
    }
    assert_eq!(of("none.toml").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(of("d.toml").is_ok());
    std::fs::remove_dir_all(folder).unwrap();
}

#[cfg(not(any(
    feature = "etcd",
    feature = "file",
    feature = "nats",
    feature = "toml",
    feature = "yaml"
)))]
#[test]
fn what_is_not_built_in_is_named_by_its_feature() {
    for (key, feature) in [
        ("DISCOVERY", "etcd"),
        ("DISCOVERY__ETCD__TTL", "etcd"),
        ("DISCOVERY__FILE__FOLDER", "file"),
        ("REQUEST_PLANE__NATS__ACCESS__URL", "nats"),
        ("EVENT_PLANE", "nats"),
        #[cfg(all(feature = "tcp", not(feature = "tls")))]
        ("REQUEST_PLANE__TCP__TLS__ROOTS", "tls"),
        #[cfg(not(feature = "tcp"))]
        ("REQUEST_PLANE__TCP__LISTEN", "tcp"),
    ] {
        let message = refused(vars(&[(key, feature)]));
        let expected = format!("needs the feature `{feature}` of dynamo-core");
        assert!(message.contains(&expected), "{key}: {message}");
    }
    for name in ["toml", "yaml"] {
        assert!(refused(file(name, "")).contains(&format!("feature `{name}`")));
    }
}

/// Serves on one runtime and calls from another, or from the same.
async fn serves(server: RuntimeConfig, caller: Option<RuntimeConfig>) {
    let server = server.build().await.unwrap();
    let caller = match caller {
        Some(caller) => caller.build().await.unwrap(),
        None => server.clone(),
    };
    let endpoint = |runtime: &Runtime| {
        let component = runtime.namespace("n").unwrap().component("c").unwrap();
        component.endpoint::<u32, u32>("e").unwrap()
    };
    let engine = engine_fn(|ctx: Context, count: u32| async move {
        Ok(ResponseStream::from_items(&ctx, 0..count))
    });
    let serving = endpoint(&server).serve(engine).await.unwrap();
    let client = endpoint(&caller).client().await.unwrap();
    let answer = client.generate(Context::new(), 3).await.unwrap().collect().await.unwrap();
    assert_eq!(answer, [0, 1, 2]);
    drop((serving, client));
    for runtime in [caller, server] {
        runtime.shutdown(Duration::from_secs(20)).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_built_serves() {
    serves(RuntimeConfig::default(), None).await;
    #[cfg(feature = "tcp")]
    serves(vars(&[("REQUEST_PLANE__TCP__LISTEN", "127.0.0.1:0")]).unwrap(), None).await;
}

#[cfg(all(feature = "tcp", feature = "file", unix))]
#[tokio::test]
async fn the_same_graph_runs_on_two_runtimes_that_share_a_folder() {
    let folder = std::env::temp_dir().join(format!("dynamo-two-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let shared = ("DISCOVERY__FILE__FOLDER", folder.to_str().unwrap());
    let server = vars(&[shared, ("REQUEST_PLANE__TCP__LISTEN", "127.0.0.1:0")]).unwrap();
    let caller = vars(&[shared, ("REQUEST_PLANE", "tcp")]).unwrap();
    serves(server, Some(caller)).await;
    std::fs::remove_dir_all(folder).unwrap();
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn what_does_not_start_is_named_by_its_part() {
    let config = vars(&[("REQUEST_PLANE__TCP__LISTEN", "192.0.2.1:0")]).unwrap();
    let error = config.build().await.unwrap_err();
    assert!(error.message().starts_with("request plane: 192.0.2.1:0 is no loopback"), "{error}");
    for (key, value, why) in [
        ("STREAM_WINDOW", "0", "request plane: windows of [0, 4194304] bytes"),
        ("CONNECTION_WINDOW", "4095", "not of 4096 to 1073741824"),
        ("STREAMS_MAX", "0", "request plane: limits of no streams"),
        ("ASSEMBLY_BYTES_MAX", "0", "request plane: limits of no streams"),
        ("PING_AFTER", "0ms", "ping_after of 0ns"),
        ("PING_AFTER", "1m", "ping_after of 60s and dead_after of "),
        ("DEAD_AFTER", "9000h", "and dead_after of 32400000s"),
        ("IDLE_AFTER", "1ms", "idle_after of 1ms, not of 10ms at least"),
    ] {
        let config = vars(&[(&format!("REQUEST_PLANE__TCP__LIMITS__{key}"), value)]).unwrap();
        let error = config.build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(why), "{error}");
    }
    #[cfg(feature = "etcd")]
    {
        let config = vars(&[("DISCOVERY", "etcd")]).unwrap();
        let error = config.build().await.unwrap_err();
        assert_eq!(error.message(), "discovery: no endpoint of etcd is given");
    }
}
