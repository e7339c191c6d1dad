//! STATUS: could ADD be served now? Asks what ADD would ask, and changes nothing.

use crate::delegate::Delegate;
use crate::delegate_config::Template;
use crate::env::{PluginPath, Verb};
use crate::error::Error;
use crate::netconf::NetConf;
use crate::{stale_bridge, subnet_env};

/// Answers with success, or with the reason ADD would fail.
///
/// # Errors
/// Code 50 around what stands in the way on this node, code 7 for a wrong configuration, or the
/// delegate's own error.
pub fn run(path: &PluginPath, conf: &NetConf) -> Result<(), Error> {
    let template = Template::new(conf)?;
    let unavailable = |error| Error::NotAvailable(Box::new(error));
    let env = subnet_env::read(&conf.subnet_file).map_err(|error| unavailable(error.into()))?;
    let config = template.fill(&env);
    let delegate = Delegate::find(&config, path).map_err(|error| unavailable(error.into()))?;
    stale_bridge::look(conf, &config, &env).map_err(|error| unavailable(error.into()))?;
    delegate.run(Verb::Status, &config, &[])?;
    Ok(())
}
