"""One HTTP exchange with a stranger: addresses to the letter, certificates, proxies, redirects, bodies on their way."""
