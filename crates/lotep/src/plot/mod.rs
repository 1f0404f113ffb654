//! Pictures without a library: charts as SVG that any browser shows, pixels as PNG. Whatever a user named is escaped.

mod bars;
mod chart;
mod heat;
mod png;
mod scale;
mod svg;

pub use bars::{Bar, bars};
pub use chart::{Chart, Point, Series, chart};
pub use heat::{Heat, heat};
pub use png::{data_url, grey, png};
pub(crate) use svg::short;
pub use svg::{Anchor, Svg, escape};

/// Colours of series that people with any colour vision tell apart: Okabe and Ito's, then some of Tol's.
pub const COLOURS: [&str; 16] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#882255", "#999933",
    "#332288", "#44aa99", "#aa4466", "#117733", "#661100", "#ddcc77", "#aa4499",
];
