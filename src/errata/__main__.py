from errata.cli import main

raise SystemExit(main())
