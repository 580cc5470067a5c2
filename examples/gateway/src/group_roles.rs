use crate::identity::Role;

/// The roles of groups, for users whose role no file has.
///
/// ```
/// use kernelmux_gateway::{GroupRoles, Role};
///
/// let roles = GroupRoles::new(vec![("platform".to_owned(), Role::Operator)]);
/// assert_eq!(roles.role_of(&["staff".to_owned(), "platform".to_owned()]), Role::Operator);
/// assert_eq!(roles.role_of(&["staff".to_owned()]), Role::User);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupRoles(Vec<(String, Role)>);

impl GroupRoles {
    /// These groups with their roles. The first one that a user is in decides.
    #[must_use]
    pub fn new(roles: Vec<(String, Role)>) -> Self {
        Self(roles)
    }

    /// The role of a user in these groups: [`Role::User`] unless a group has another one.
    #[must_use]
    pub fn role_of(&self, groups: &[String]) -> Role {
        let found = self.0.iter().find(|(group, _)| groups.contains(group));
        found.map_or(Role::User, |(_, role)| *role)
    }
}
