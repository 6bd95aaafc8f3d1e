"""What is cardiac in the cardiac study: data, phantom, corruptions, protocol, settings and the page."""
