from ccrepro.cli import main

raise SystemExit(main())
