//! A gateway with one user for each role.

use std::collections::HashMap;
use std::path::PathBuf;

use hyper::body::Bytes;
use kernelmux_gateway::{Access, Role, Token, Users, UsersFile};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Answer, Served, TOKEN};

/// The users: their names, roles and groups. The name of each is that of its role; `peer` is another one of the role
/// `user`.
pub const USERS: [(&str, Role, &[&str]); 6] = [
    ("user", Role::User, &["staff"]),
    ("viewer", Role::Viewer, &["staff"]),
    ("operator", Role::Operator, &["staff"]),
    ("admin", Role::Admin, &["staff"]),
    ("server", Role::Server, &["staff"]),
    ("peer", Role::User, &[]),
];

/// A gateway with [`USERS`], and with the shared token [`TOKEN`].
pub struct Team {
    pub served: Served,
    pub file: UsersFile,
    tokens: HashMap<String, String>,
    _folder: TempDir,
}

impl Team {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(adjust: impl FnOnce(&mut kernelmux_gateway::GatewayOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = UsersFile::new(PathBuf::from(folder.path()).join("users.json"));
        let mut tokens = HashMap::from([("shared".to_owned(), TOKEN.to_owned())]);
        for (name, role, groups) in USERS {
            let groups = groups.iter().map(|group| (*group).to_owned()).collect();
            let token = file.add(name, role, groups).unwrap();
            tokens.insert(name.to_owned(), token.reveal().to_owned());
        }
        let users = Users::open(file.clone()).unwrap();
        let served = Served::with(
            |options| {
                options.access = Access::Token(Token::new(TOKEN).unwrap());
                options.users = Some(users);
                options.default_owner = Some("host".to_owned());
                adjust(options);
            },
            |_| {},
        )
        .await;
        Self {
            served,
            file,
            tokens,
            _folder: folder,
        }
    }

    pub fn token(&self, name: &str) -> &str {
        &self.tokens[name]
    }

    /// Sends a request as this user, or with the shared token as `shared`.
    pub async fn send(&self, name: &str, method: &str, path: &str, body: Value) -> Answer {
        let authorization = format!("Bearer {}", self.token(name));
        let body = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        self.served
            .send_with_headers(method, path, &[("authorization", &authorization)], body)
            .await
    }

    pub async fn get(&self, name: &str, path: &str) -> Answer {
        self.send(name, "GET", path, Value::Null).await
    }

    /// Starts a kernel of this owner, with the shared token, and returns its id.
    pub async fn start_kernel(&self, owner: &str) -> String {
        let body = json!({"name": "echo", "env": {"KERNEL_USERNAME": owner}});
        let model = self.served.start_kernel(body).await;
        model["id"].as_str().unwrap().to_owned()
    }

    /// Shares a kernel as its owner `shared`.
    pub async fn share(&self, kernel: &str, body: Value) -> String {
        let made = self
            .send("shared", "POST", &format!("/api/kernels/{kernel}/shares"), body)
            .await;
        assert_eq!(made.status, 201, "{made:?}");
        made.json()["id"].as_str().unwrap().to_owned()
    }
}
