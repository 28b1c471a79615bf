#include "base/leaving.h"
#include "cli/verbs.h"

int main(int argc, char** argv) { return fathom::finish(fathom::cli::run(argc, argv)); }
