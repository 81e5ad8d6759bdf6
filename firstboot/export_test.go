package firstboot

import (
	"errors"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
)

// What the boot, Run and Plan are made of, for tests with servers of their own.
var (
	KeptForLife = keptForLife
	Begin       = begin
	Prepare     = prepare
	ExportLive  = exportLive
	BootBecome  = bootBecome
	BootSettle  = bootSettle
)

// Check refuses phases whose steps do not fit together.
func Check() error {
	return errors.Join(become.Phase.Check(), become.SettlePhase.Check(), converge.Phase.Check())
}
