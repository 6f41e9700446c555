"""The application: settings, services, the path from question to cited answer, and the three ways in."""
