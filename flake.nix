{
  description = "moeplan";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixpkgs-unstable";

  outputs =
    { self, nixpkgs }:
    let
      package = (builtins.fromTOML (builtins.readFile ./Cargo.toml)).package;
      systems = [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ];
    in
    {
      packages = nixpkgs.lib.genAttrs systems (
        system:
        let
          pkgs = nixpkgs.legacyPackages.${system};
        in
        {
          default = pkgs.rustPlatform.buildRustPackage {
            pname = package.name;
            inherit (package) version;
            src = self;
            cargoLock.lockFile = ./Cargo.lock;
            buildType = "dist";
            # They need llama.cpp, a network of their own and much time: `scripts/test` runs them.
            doCheck = false;
            nativeBuildInputs = [ pkgs.installShellFiles ];
            postInstall = ''
              for shell in bash zsh fish; do
                $out/bin/moeplan completions $shell >moeplan.$shell
                installShellCompletion --cmd moeplan --$shell moeplan.$shell
              done
              $out/bin/moeplan man --out man
              installManPage man/*.1
            '';
            meta = {
              inherit (package) description;
              license = with nixpkgs.lib.licenses; [ mit asl20 ];
              mainProgram = package.name;
            };
          };
        }
      );
    };
}
