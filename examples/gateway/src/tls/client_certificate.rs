//! The user that a client's certificate names: the common name of its subject. The organizations are the user's groups,
//! as with Kubernetes.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::name::DirectoryString;
use x509_cert::{Certificate, TbsCertificate};

use crate::group_roles::GroupRoles;
use crate::identity::{Identity, InvalidName, checked_name};

/// The attribute `commonName` of RFC 5280, appendix A.1.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// The attribute `organizationName`.
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
/// The most groups of a user.
const MAX_GROUPS: usize = 1_024;

/// Why a certificate names no user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoUser {
    #[error("the certificate cannot be decoded: {0}")]
    Encoding(#[from] x509_cert::der::Error),
    #[error("the subject has {0} common names instead of one")]
    CommonNames(usize),
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// The verified certificate of a connection's client.
#[derive(Clone, Debug)]
pub(crate) struct ClientCertificate {
    pub(crate) name: String,
    groups: Vec<String>,
    expires: DateTime<Utc>,
    /// Cancelled when its issuer may no longer be trusted.
    revoked: CancellationToken,
}

impl ClientCertificate {
    /// Reads a certificate that was verified in the handshake.
    pub(super) fn new(certificate: &CertificateDer<'_>, revoked: CancellationToken) -> Result<Self, NoUser> {
        let certificate = Certificate::from_der(certificate)?;
        let certificate = certificate.tbs_certificate();
        let values = |oid: ObjectIdentifier| {
            let attributes = certificate
                .subject()
                .iter()
                .filter(move |attribute| attribute.oid == oid);
            attributes.map(|attribute| DirectoryString::try_from(&attribute.value))
        };
        let names = values(COMMON_NAME).collect::<Result<Vec<_>, _>>()?;
        let [name] = names.as_slice() else {
            return Err(NoUser::CommonNames(names.len()));
        };
        let groups = values(ORGANIZATION).filter_map(|group| {
            let group = group.ok()?;
            Some(checked_name(&group.value()).ok()?.to_owned())
        });
        Ok(Self {
            name: checked_name(&name.value())?.to_owned(),
            groups: groups.take(MAX_GROUPS).collect(),
            expires: end_of(certificate),
            revoked,
        })
    }

    /// The user, with the first role that a group has.
    pub(crate) fn identity(&self, roles: &GroupRoles) -> Arc<Identity> {
        let mut identity = Identity::new(&*self.name, self.groups.clone(), roles.role_of(&self.groups));
        identity.expires = Some(self.expires);
        identity.revoked = Some(self.revoked.clone());
        Arc::new(identity)
    }
}

fn end_of(certificate: &TbsCertificate) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + certificate.validity().not_after.to_unix_duration()
}

/// When the certificate expires; `None` if it cannot be decoded.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Option<DateTime<Utc>> {
    Some(end_of(Certificate::from_der(certificate).ok()?.tbs_certificate()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    use super::*;
    use crate::Role;

    fn read(names: &[(DnType, &str)]) -> Result<ClientCertificate, NoUser> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), DnValue::from(*value));
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        ClientCertificate::new(certificate.der(), CancellationToken::new())
    }

    #[test]
    fn the_subject_names_the_user_and_their_groups() {
        let found = read(&[(DnType::CommonName, "ada"), (DnType::OrganizationName, "ops")]).unwrap();
        let roles = GroupRoles::new(vec![("ops".to_owned(), Role::Operator)]);
        let identity = found.identity(&roles);
        assert_eq!((identity.name.as_deref(), identity.role), (Some("ada"), Role::Operator));
        assert_eq!(identity.groups, ["ops"]);
        assert!(identity.expires.unwrap() > Utc::now() && !identity.has_ended());
        found.revoked.cancel();
        assert!(identity.has_ended());
    }

    #[test]
    fn other_subjects_name_no_user() {
        assert!(matches!(read(&[]), Err(NoUser::CommonNames(0))));
        assert!(matches!(
            read(&[(DnType::OrganizationName, "ops")]),
            Err(NoUser::CommonNames(0))
        ));
        for wrong in ["", "a/b", " ada", &"x".repeat(300)] {
            assert!(
                matches!(read(&[(DnType::CommonName, wrong)]), Err(NoUser::Name(_))),
                "{wrong:?}"
            );
        }
        let garbage = ClientCertificate::new(&vec![0x30, 0x80, 1, 2].into(), CancellationToken::new());
        assert!(matches!(garbage, Err(NoUser::Encoding(_))));
    }
}
