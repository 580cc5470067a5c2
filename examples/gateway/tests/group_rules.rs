//! Rules for groups: kernelspecs, profiles, images and limits; and limits a minute.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::users::Team;
use kernel_provider::fake::FakeSpec;
use kernelmux_gateway::{GroupRules, RateLimits};
use serde_json::{Value, json};

/// A gateway whose group `staff` has these rules.
async fn team(rules: Value) -> Team {
    let rules: GroupRules = serde_json::from_value(rules).unwrap();
    let team = Team::with(|options| options.groups = vec![("staff".to_owned(), rules.clone())]).await;
    let mut options = (*team.served.manager.options()).clone();
    options.groups.insert("staff".to_owned(), rules.for_manager());
    team.served.manager.set_options(options);
    let profiles = json!({"kernelmux": {"profiles": [
        {"name": "small", "resources": {"cpu": "1"}, "env": {"KERNEL_IMAGE": "small"}},
        {"name": "large", "resources": {"cpu": "64"}},
    ]}});
    team.served.provider.install("profiled", FakeSpec::echo(), profiles);
    let of_group = json!({"kernelmux": {"authorized_groups": ["staff"]}});
    team.served.provider.install("of-staff", FakeSpec::echo(), of_group);
    team
}

async fn start(team: &Team, user: &str, spec: &str, env: Value) -> u16 {
    let body = json!({"name": spec, "env": env});
    team.send(user, "POST", "/api/kernels", body).await.status
}

async fn specs(team: &Team, user: &str, query: &str) -> Vec<String> {
    let listed = team.get(user, &format!("/api/kernelspecs{query}")).await.json();
    listed["kernelspecs"].as_object().unwrap().keys().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_see_and_start_the_kernelspecs_of_their_group() {
    let team = team(json!({"kernelspecs": ["echo", "of-staff"]})).await;
    assert_eq!(specs(&team, "user", "").await, ["echo", "of-staff"]);
    assert_eq!(specs(&team, "peer", "").await, ["echo", "profiled"]);
    // The notebook server acts for its users, whose groups the file has.
    assert_eq!(specs(&team, "shared", "?user=user").await, ["echo", "of-staff"]);
    assert_eq!(specs(&team, "shared", "?user=peer").await, ["echo", "profiled"]);
    assert_eq!(specs(&team, "shared", "").await.len(), 3);
    for (user, spec, expected) in [
        ("user", "echo", 201),
        ("user", "of-staff", 201),
        ("user", "profiled", 403),
        ("peer", "profiled", 201),
        ("peer", "of-staff", 403),
    ] {
        assert_eq!(start(&team, user, spec, json!({})).await, expected, "{user} {spec}");
        let listed = team.get(user, &format!("/api/kernelspecs/{spec}")).await.status;
        assert_eq!(listed == 200, expected == 201, "{user} {spec}");
        let env = json!({"KERNEL_USERNAME": user});
        assert_eq!(start(&team, "shared", spec, env).await, expected, "{user} {spec}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_choose_among_the_profiles_and_images_of_their_group() {
    let team = team(json!({"profiles": ["small"], "images": ["lab/*"]})).await;
    for (env, expected) in [
        (json!({}), 403),
        (json!({"KERNEL_PROFILE": "large"}), 403),
        (json!({"KERNEL_PROFILE": "small", "KERNEL_CPUS": "64"}), 403),
        (json!({"KERNEL_PROFILE": "small", "KERNEL_MEMORY_LIMIT": "64Gi"}), 403),
        (json!({"KERNEL_PROFILE": "small", "KERNEL_IMAGE": "other"}), 403),
        // The image of the profile is the operator's choice.
        (json!({"KERNEL_PROFILE": "small"}), 201),
        (json!({"KERNEL_PROFILE": "small", "KERNEL_IMAGE": "lab/x:1"}), 201),
    ] {
        assert_eq!(start(&team, "user", "profiled", env.clone()).await, expected, "{env}");
        assert_eq!(start(&team, "peer", "profiled", env.clone()).await, 201, "{env}");
    }
    let launch = team.served.provider.last_launch();
    assert_eq!(launch.env["KERNEL_CPUS"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_have_the_limits_of_their_group() {
    let team = team(json!({"max-kernels": 2, "max-kernels-per-user": 1})).await;
    assert_eq!(start(&team, "user", "echo", json!({})).await, 201);
    let message = team
        .send("user", "POST", "/api/kernels", json!({"name": "echo"}))
        .await
        .error(403);
    assert_eq!(
        message,
        "the limit of 1 kernels of user is reached; shut one down first"
    );
    assert_eq!(start(&team, "admin", "echo", json!({})).await, 201);
    let body = json!({"name": "echo", "env": {"KERNEL_USERNAME": "server"}});
    let message = team.send("shared", "POST", "/api/kernels", body).await.error(403);
    assert_eq!(
        message,
        "the limit of 2 kernels of the group staff is reached; shut one down first"
    );
    assert_eq!(start(&team, "peer", "echo", json!({})).await, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_have_limits_a_minute() {
    let rates = RateLimits::default()
        .with_starts(1)
        .with_requests(6)
        .with_connections(1);
    let team = Team::with(|options| options.rates = rates).await;
    let started = team.send("user", "POST", "/api/kernels", json!({"name": "echo"})).await;
    assert_eq!(started.status, 201);
    let refused = team.send("user", "POST", "/api/kernels", json!({"name": "echo"})).await;
    let message = refused.error(429);
    assert!(
        message.contains("the limit of 1 starts of kernels a minute for user is reached"),
        "{message}"
    );
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=61).contains(&wait), "{wait}");
    // The notebook server starts kernels for the same user, and one for another.
    for (user, status) in [("user", 429), ("peer", 201)] {
        let body = json!({"name": "echo", "env": {"KERNEL_USERNAME": user}});
        assert_eq!(
            team.send("shared", "POST", "/api/kernels", body).await.status,
            status,
            "{user}"
        );
    }
    let id = started.json()["id"].as_str().unwrap().to_owned();
    let log = format!("/api/kernels/{id}/log?follow=false");
    assert_eq!(team.get("user", &log).await.status, 200);
    assert!(
        team.get("user", &log)
            .await
            .error(429)
            .contains("1 connections a minute")
    );
    // Six requests in all; the last ones are refused for this reason.
    assert_eq!(team.get("user", "/api").await.status, 200);
    assert_eq!(team.get("user", "/api").await.status, 200);
    assert!(
        team.get("user", "/api")
            .await
            .error(429)
            .contains("6 requests a minute")
    );
    for _ in 0..20 {
        assert_eq!(team.get("shared", "/api").await.status, 200);
    }
    let mut options = (*team.served.gateway.options()).clone();
    options.rates = RateLimits::default();
    team.served.gateway.set_options(options);
    assert_eq!(team.get("user", "/api").await.status, 200);
}
